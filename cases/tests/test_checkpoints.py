"""load_replaced: the model that loading and then replacing would give, without the way through it."""

from __future__ import annotations

import functools
import inspect
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import policies
from harness.case import Case

from ..unet import UNetCase
from ..vae import VAECase
from .saved import SAVED, llama, loaded, same, tiny

FEW = settings(max_examples=6, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
Entries = dict[str, torch.Tensor]
GPT_NEO = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
TOWER = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12, "projection_dim": 4}
CLIP = {
    "text_config": TOWER | {"vocab_size": 32, "max_position_embeddings": 9},
    "vision_config": TOWER | {"image_size": 8, "patch_size": 4},
    "projection_dim": 4,
}
HEADED = ("GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM", "OPTForCausalLM", "BloomForCausalLM", "GPTNeoXForCausalLM")


@pytest.mark.parametrize("entry", SAVED, ids=lambda entry: entry.name)
def test_a_checkpoint_gives_what_loading_and_replacing_gives(entry: Any) -> None:
    case: Case = entry.load()

    # What an IP-Adapter leaves in a UNet's configuration, diffusers itself refuses to load.
    drawn = case.strategy.filter(lambda example: example.values.get("adapter") != "ip_adapter")

    @FEW
    @given(drawn, st.sampled_from((torch.float32, torch.bfloat16)))
    def check(example: Any, dtype: torch.dtype) -> None:
        model: Any = case.build(example)
        kwargs = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(type(model)).parameters else {}
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore", policies.NothingReplacedWarning)
            model.save_pretrained(name, max_shard_size="20KB")
            expected = policies.replace_module(loaded(type(model), Path(name), dtype, **kwargs))
            build = (lambda: type(model)(model.config, **kwargs)) if kwargs else type(model)
            actual = policies.load_replaced(build, name, dtype=dtype)
            same(actual.model, expected.model)
            assert (actual.replaced, actual.left) == (expected.replaced, expected.left)
            if dtype is torch.float32:
                runs = [case.run(one.model, case.inputs(example)) for one in (expected, actual)]
                # Convolutions round by where weights lie in memory, and diffusers leaves them at odd addresses.
                tolerance = {"rtol": 0.0, "atol": 0.0} if case.layered else {}
                torch.testing.assert_close(runs[1], runs[0], equal_nan=True, **tolerance)

    with torch.no_grad():
        check()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", HEADED)
def test_a_model_with_a_head_keeps_its_ties(name: str, tied: bool, tmp_path: Path) -> None:
    model = tiny(name, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    expected = loaded(type(model), tmp_path, torch.float32)
    policies.replace_module(expected)
    actual = policies.load_replaced(type(model), tmp_path)
    same(actual.model, expected)
    ids = torch.arange(6)[None]
    assert torch.equal(actual.model(ids).logits, expected(ids).logits)


@pytest.mark.parametrize("name", HEADED)
def test_a_base_model_comes_out_of_the_checkpoint_of_one_with_a_head(name: str, tmp_path: Path) -> None:
    model = tiny(name, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    base = type(getattr(model, model.base_model_prefix))
    kwargs = {"add_pooling_layer": False} if name.startswith("Bert") else {}
    expected = base.from_pretrained(tmp_path, **kwargs).eval()
    policies.replace_module(expected)
    actual = policies.load_replaced(lambda: base(model.config, **kwargs), tmp_path)
    same(actual.model, expected)
    assert actual.unused and all(not one.startswith(f"{model.base_model_prefix}.") for one in actual.unused)


LOWER = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]


def with_causal_masks(path: str) -> Callable[[Entries], Entries]:
    """As checkpoints of old have them for each layer."""
    masks = {f"{path.format(layer)}.{name}": one for layer in (0, 1) for name, one in MASKS.items()}
    return lambda entries: {**entries, **{name: one.clone() for name, one in masks.items()}}


MASKS = {"bias": LOWER, "masked_bias": torch.tensor(-1e4)}


def with_older_attention(entries: Entries) -> Entries:
    """Under the names that diffusers' first VAEs have."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {functools.reduce(lambda name, one: name.replace(*one), older.items(), name): entries[name] for name in entries}


def rewrite(folder: Path, edit: Callable[[Entries], Entries]) -> None:
    (file,) = folder.glob("*.safetensors")
    save_file(edit({name: one.clone() for name, one in load_file(file).items()}), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("model", "edit"),
    [
        (lambda: tiny("GPT2LMHeadModel"), with_causal_masks("transformer.h.{}.attn")),
        (lambda: tiny("GPTNeoForCausalLM", **GPT_NEO), with_causal_masks("transformer.h.{}.attn.attention")),
        (lambda: tiny("GPTNeoXForCausalLM"), with_causal_masks("gpt_neox.layers.{}.attention")),
        (lambda: VAECase().build(VAECase().simplest), with_older_attention),
    ],
    ids=["gpt2", "gpt_neo", "gpt_neox", "vae"],
)
def test_a_checkpoint_of_old_gives_what_loading_and_replacing_gives(model: Any, edit: Any, tmp_path: Path) -> None:
    saved = model()
    saved.save_pretrained(tmp_path)
    rewrite(tmp_path, edit)
    expected = policies.replace_module(type(saved).from_pretrained(tmp_path).eval())
    actual = policies.load_replaced(type(saved), tmp_path)
    assert not actual.unused
    same(actual.model, expected.model)


@pytest.mark.parametrize("size", ["10GB", "10KB"], ids=["in one file", "in shards"])
@pytest.mark.parametrize("model", [lambda: tiny("BertModel"), lambda: VAECase().build(VAECase().simplest)], ids=["bert", "vae"])
def test_a_variant_is_loaded_where_it_is_asked_for(model: Any, size: str, tmp_path: Path) -> None:
    saved = model()
    saved.save_pretrained(tmp_path)
    for parameter in saved.parameters():
        parameter.data *= 2
    saved.save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    expected = policies.replace_module(type(saved).from_pretrained(tmp_path, variant="fp16").eval())
    same(policies.load_replaced(type(saved), tmp_path, variant="fp16").model, expected.model)
    (main,) = (*tmp_path.glob("*.index.fp16.json"), *tmp_path.glob("*l.fp16.safetensors"))
    same(policies.load_replaced(type(saved), main).model, expected.model)
    with pytest.raises(policies.CheckpointError, match=r"no safetensors checkpoint .* \(looked for model\.bf16\.safetensors, "):
        policies.load_replaced(type(saved), tmp_path, variant="bf16")


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPVisionModel", "CLIPTextModelWithProjection"])
def test_one_tower_comes_out_of_the_checkpoint_of_a_whole_clip(name: str, tmp_path: Path) -> None:
    whole, cls = tiny("CLIPModel", **CLIP), getattr(transformers, name)
    whole.save_pretrained(tmp_path)
    actual = policies.load_replaced(cls, tmp_path)
    same(actual.model, policies.replace_module(cls.from_pretrained(tmp_path).eval()).model)
    other = "text_model." if "Vision" in name else "vision_model."
    assert "logit_scale" in actual.unused
    assert {one for one in load_file(tmp_path / "model.safetensors") if one.startswith(other)} <= set(actual.unused)
    own = "vision_model." if "Vision" in name else "text_model."
    rewrite(tmp_path, lambda entries: {**entries, f"{own}encoder.layers.7.extra": torch.zeros(2)})
    with pytest.raises(policies.CheckpointError, match=rf"{name}: unexpected: {own}encoder.layers.7.extra \(2\)$"):
        policies.load_replaced(cls, tmp_path)


@pytest.mark.parametrize("case", [UNetCase(), VAECase()], ids=lambda case: case.name)
def test_a_diffusion_model_in_half_precision_is_as_diffusers_gives_it_where_no_dtype_is_asked_for(
    case: Case, tmp_path: Path
) -> None:
    model: Any = case.build(case.simplest).bfloat16()
    model.save_pretrained(tmp_path)
    same(
        policies.load_replaced(type(model), tmp_path).model, policies.replace_module(type(model).from_pretrained(tmp_path)).model
    )


def test_a_tied_head_is_filled_from_the_checkpoint_of_the_base_model(tmp_path: Path) -> None:
    model = tiny("GPT2LMHeadModel")
    model.transformer.save_pretrained(tmp_path)
    actual = policies.load_replaced(type(model), tmp_path).model
    assert torch.equal(actual.lm_head.weight, model.transformer.wte.weight)
    assert actual.lm_head.weight is actual.transformer.wte.weight


def test_a_model_is_named_by_class_by_auto_class_by_configuration_or_by_a_function(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    named = policies.load_replaced(llama(), folder).model
    config = LlamaConfig.from_pretrained(folder)
    for other in (AutoModelForCausalLM, config, lambda: llama()(config)):
        same(policies.load_replaced(other, folder).model, named)
    same(policies.load_replaced(llama(), folder / "model.safetensors.index.json").model, named)


def test_the_handle_reverts_to_the_original(folder: Path) -> None:
    handle = policies.load_replaced(llama(), folder)
    handle.revert()
    same(handle.model, loaded(llama(), folder, torch.float32))


def test_generation_is_set_up_as_it_was_saved(tmp_path: Path) -> None:
    model = tiny()
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    actual = policies.load_replaced(type(model), tmp_path).model
    assert actual.generation_config.max_new_tokens == 3
    assert actual.generate(torch.tensor([[3, 4]]), do_sample=False).shape[1] <= 5


def test_weights_of_a_loaded_model_can_be_written_and_the_files_stay(folder: Path) -> None:
    files = {file: file.read_bytes() for file in folder.glob("*.safetensors")}
    model = policies.load_replaced(llama(), folder).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert {file: file.read_bytes() for file in files} == files


def test_a_loaded_model_can_be_saved_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    first = policies.load_replaced(llama(), folder).model
    first.save_pretrained(tmp_path / "again")
    same(policies.load_replaced(llama(), tmp_path / "again").model, first)


def test_the_weights_of_a_layer_that_is_not_replaced_are_there_too(folder: Path) -> None:
    handle = policies.load_replaced(llama(), folder, policies=(policies.HFGPT2LayerPolicy, policies.LlamaLayerPolicy))
    assert len(handle.replaced) == 2
    with pytest.warns(policies.NothingReplacedWarning):
        handle = policies.load_replaced(llama(), folder, policies=(policies.HFGPT2LayerPolicy,))
    same(handle.model, loaded(llama(), folder, torch.float32))


def test_every_block_of_the_page_on_checkpoints_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})
