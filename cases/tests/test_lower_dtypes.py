"""In the dtypes that people run, a replacement keeps what its original keeps: masks, infinities, NaN, and what a cache holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    GPT2Config,
    GPT2Model,
    GPTJConfig,
    GPTJModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
)

import policies
from harness.exact import exact_mode
from harness.nested import cast
from policies.fused import onednn

from .diffusion_pairs import UNET, example

pytestmark = pytest.mark.usefixtures("no_gradients")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 61,
}
CONFIG: dict[type, Any] = {
    BertModel: BertConfig(**SIZES),
    LlamaModel: LlamaConfig(**SIZES),
    GPTNeoXModel: GPTNeoXConfig(**SIZES),
    BloomModel: BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=61),
    OPTModel: OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=61, word_embed_proj_dim=32
    ),
    GPTNeoForCausalLM: GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=3,
        vocab_size=61,
        max_position_embeddings=64,
    ),
}


def pair(kind: type, dtype: torch.dtype = torch.float32, plan: str = "auto", std: float = 0.4) -> tuple[Any, Any]:
    """A model with large weights, and a replaced copy."""
    torch.manual_seed(3)
    original: Any = kind(CONFIG[kind]).eval()
    for parameter in original.parameters():
        parameter.normal_(std=std)
    original.to(dtype)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced, plan=plan)
    return original, replaced


def largest_difference(mine: torch.Tensor, its: torch.Tensor) -> float:
    return float((mine.double() - its.double()).abs().max() / mine.double().abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_two_masks_forbid_weighs_less_than_what_one_does_in_gpt_neo(dtype: torch.dtype) -> None:
    """At positions where all is forbidden, those of padding, that decides."""
    original, replaced = pair(GPTNeoForCausalLM, dtype)
    ids = torch.randint(3, 60, (2, 7))
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    call = {"input_ids": ids, "attention_mask": padding}
    assert largest_difference(original(**call).logits, replaced(**call).logits) < 1e-5


@pytest.mark.parametrize("kind", [BertModel, BloomModel, LlamaModel, OPTModel])
def test_eager_attention_in_float16_gives_padding_what_the_original_gives_it(kind: type) -> None:
    """It rounds a score beside the mask's smallest number away, where torch's attention keeps it."""
    original, replaced = pair(kind, torch.float16)
    for model in (original, replaced):
        model.set_attn_implementation("eager")
    ids = torch.randint(3, 60, (2, 7))
    padding = torch.ones_like(ids)
    padding[0, : 7 if kind is BertModel else 3] = 0
    mine, its = (model(input_ids=ids, attention_mask=padding).last_hidden_state for model in (original, replaced))
    assert largest_difference(mine, its) < 0.01
    assert [*_fallbacks(replaced)] == []


def _fallbacks(replaced: Any) -> Iterator[str]:
    for one in replaced.modules():
        if hasattr(one, "fused"):
            yield from one.fused.fallbacks


def errors(original: Any, replaced: Any, **call: Any) -> tuple[float, float]:
    """Root mean squares of what each is away from the exact result."""
    exact = copy.deepcopy(original).double()
    wide = {name: one.double() if one.is_floating_point() else one for name, one in call.items()}
    with exact_mode():
        expected = exact(**wide).last_hidden_state
    found = (model(**call).last_hidden_state.double() - expected for model in (original, replaced))
    mine, its = (float(one.square().mean().sqrt()) for one in found)
    return mine, its


def test_padding_in_float16_is_given_what_gpt2_gives_it_whose_scores_are_float32() -> None:
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=50, reorder_and_upcast_attn=True, attn_implementation="eager",
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    original = GPT2Model(config).eval().half()
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    ids, mask = torch.randint(0, 50, (2, 6)), torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    expected, found = (one(ids, attention_mask=mask)[0].float() for one in (original, replaced))
    assert (expected - found).abs().max() < 0.02


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (GPTNeoModel, GPTNeoConfig(hidden_size=64, num_layers=1, attention_types=[[["global"], 1]], num_heads=2, vocab_size=50)),
        (GPTJModel, GPTJConfig(n_embd=64, n_layer=1, n_head=2, rotary_dim=16, vocab_size=50)),
        (GPT2Model, GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50, reorder_and_upcast_attn=True)),
    ],
)
def test_scores_beyond_float16_are_no_infinities_where_the_original_has_them_in_float32(model: Any, config: Any) -> None:
    """With gradients, as a plain call of a model in eval mode has them, attention is by matrix products."""
    config.initializer_range = 0.2
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    original = model(config).eval()
    for name, one in original.named_parameters():
        if name.rpartition(".")[0].endswith(("q_proj", "k_proj", "c_attn")):
            one.mul_(150.0)
    original.half()
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    ids = torch.randint(0, 50, (2, 12))
    with torch.enable_grad():
        expected, found = (one(ids)[0] for one in (original, replaced))
    assert not replaced.h[0].fused.fallbacks
    assert expected.isfinite().all() and found.isfinite().all()


def test_scores_beyond_float16_are_no_infinities_in_a_unet_that_has_them_in_float32() -> None:
    original: Any = UNET.build(example(UNET))
    original.set_attn_processor(AttnProcessor())
    for one in original.modules():
        if type(one) is Attention:
            one.upcast_attention = True
            one.to_q.weight.mul_(1000.0)
            one.to_k.weight.mul_(1000.0)
    original.half()
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    inputs = cast(UNET.inputs(example(UNET)), torch.float16)
    with torch.enable_grad():
        expected, found = (UNET.run(one, inputs) for one in (original, replaced))
    assert not replaced.fused.fallbacks
    assert all(one.isfinite().all() for one in (*expected.values(), *found.values()))


def test_a_mask_of_float32_keeps_its_digits_beside_bfloat16() -> None:
    """Distances as a bias, of which bfloat16 has two digits."""
    original, replaced = pair(LlamaModel, torch.bfloat16, std=0.2)
    distance = torch.arange(64)[:, None] - torch.arange(64)
    bias = (-1.3 * (64 - distance)).masked_fill(distance < 0, -1e30)[None, None]
    mine, its = errors(original, replaced, input_ids=torch.randint(3, 60, (1, 64)), attention_mask=bias)
    assert its < 1.5 * mine


@pytest.mark.parametrize("kind", [LlamaModel, GPTNeoXModel])
def test_a_cache_that_is_filled_under_autocast_holds_what_the_originals_holds(kind: type) -> None:
    original, replaced = pair(kind)
    ids = torch.randint(3, 60, (1, 5))
    with torch.autocast("cpu", torch.bfloat16):
        mine, its = (model(ids, use_cache=True).past_key_values.layers[1] for model in (original, replaced))
    assert (mine.keys.dtype, mine.values.dtype) == (its.keys.dtype, its.values.dtype)


@pytest.mark.parametrize("plan", ["auto", "plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_relu_passes_nan_on(dtype: torch.dtype, plan: str) -> None:
    """What went wrong in a model is seen, and not taken for zero."""
    if plan == "packed" and not onednn.multiplies(dtype):
        pytest.skip("this processor packs no such weights")
    original: Any = pair(OPTModel, dtype)[0]
    layer: Any = original.decoder.layers[0]
    layer.fc1.bias[3] = torch.nan
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced, plan=plan)
    ids = torch.randint(3, 60, (1, 5))
    assert all(bool(model(ids).last_hidden_state.isnan().all()) for model in (original, replaced))


def test_scores_as_large_as_trained_layers_have_them_lose_no_more_in_bfloat16_than_the_originals() -> None:
    """Keys that have a large part in common."""
    width, heads = 512, 4
    sizes = {"hidden_size": width, "ffn_dim": width, "word_embed_proj_dim": width, "num_attention_heads": heads}
    torch.manual_seed(0)
    original: Any = OPTModel(OPTConfig(**sizes, num_hidden_layers=1, vocab_size=512, max_position_embeddings=256)).eval()
    for parameter in original.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, width**-0.5)
    original.decoder.embed_tokens.weight.normal_()
    attention = original.decoder.layers[0].self_attn
    common = 2 * torch.randn(width)
    attention.q_proj.bias.copy_(common)
    attention.k_proj.bias.copy_(common)
    attention.v_proj.weight.mul_(4)
    original.bfloat16()
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    mine, its = errors(original, replaced, input_ids=torch.randint(0, 512, (1, 256)))
    assert its < 1.5 * mine
