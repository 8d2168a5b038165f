"""load_replaced: what is not a checkpoint of the model is refused, in a line for each fault, before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import policies
from policies.plans import PlanUnavailable

from .saved import llama, tiny


def change(folder: Path, edit: Any) -> None:
    """Let ``edit`` change the tensors of the file that holds a layer's query projection."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = folder / index["model.layers.1.self_attn.q_proj.weight"]
    found = load_file(file)
    edit(found)
    save_file(found, file)


QUERY = "model.layers.1.self_attn.q_proj.weight"


def test_every_entry_that_does_not_fit_gets_a_line(folder: Path) -> None:
    def edit(found: dict[str, torch.Tensor]) -> None:
        found[QUERY] = torch.zeros(3, 8)
        found["model.layers.7.extra"] = torch.zeros(2)

    change(folder, edit)
    with pytest.raises(policies.CheckpointError) as raised:
        policies.load_replaced(llama(), folder)
    assert raised.value.problems == (
        f"wrong shape: {QUERY} is (3, 8), {QUERY} in the model is (8, 8)",
        "unexpected: model.layers.7.extra (2)",
    )
    assert str(raised.value).splitlines()[1:] == [f"  {line}" for line in raised.value.problems]


def test_a_missing_entry_is_named_with_its_shape(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    del found[QUERY]
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(policies.CheckpointError, match=rf"LlamaForCausalLM: missing: {QUERY} \(8, 8\)$"):
        policies.load_replaced(llama(), tmp_path)


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(tmp_path: Path) -> None:
    tiny().model.save_pretrained(tmp_path)
    with pytest.raises(policies.CheckpointError, match=r"missing: lm_head.weight \(32, 8\)$"):
        policies.load_replaced(llama(), tmp_path)


def test_weights_of_a_kind_that_the_model_has_not_are_refused(folder: Path) -> None:
    change(folder, lambda found: found.update({QUERY: torch.zeros(8, 8, dtype=torch.int8)}))
    with pytest.raises(policies.CheckpointError, match=r"unreadable: .* is stored as I8, .* is torch.float32"):
        policies.load_replaced(llama(), folder)


def test_tied_parameters_with_two_values_are_refused(tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
    save_file(found, tmp_path / "model.safetensors")
    policies.load_replaced(llama(), tmp_path)
    save_file({**found, "lm_head.weight": torch.zeros(32, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(policies.CheckpointError, match=r"differing: .* are one parameter in the model and two values"):
        policies.load_replaced(llama(), tmp_path)


def cut(folder: Path) -> None:
    file = max(folder.glob("model-*"))
    file.write_bytes(file.read_bytes()[:-4])


def swap_index(folder: Path, **changes: str) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": {**content["weight_map"], **changes}}))


BROKEN = {
    "a file cut short": (cut, r"model-\d+-of-\d+.safetensors cannot be read: SafetensorError: .*not fully covered"),
    "a file that is no checkpoint": (lambda at: max(at.glob("model-*")).write_text("no"), "cannot be read: SafetensorError"),
    "a file gone": (lambda at: max(at.glob("model-*")).unlink(), "cannot be read: FileNotFoundError"),
    "an index that is no JSON": (
        lambda at: (at / "model.safetensors.index.json").write_text("{"),
        "index.json cannot be read as an index: JSONDecodeError",
    ),
    "an index without a map": (
        lambda at: (at / "model.safetensors.index.json").write_text("{}"),
        "index.json cannot be read as an index: KeyError",
    ),
    "an index out of the folder": (lambda at: swap_index(at, **{QUERY: "../x.safetensors"}), r"leads out of its folder: \.\./x"),
    "an index of what is not there": (
        lambda at: swap_index(at, other=sorted(at.glob("model-*"))[0].name),
        "other is not in model-.*, where model.safetensors.index.json has it",
    ),
    "no configuration": (lambda at: (at / "config.json").unlink(), "no config.json beside the weights"),
    "a configuration that is no JSON": (lambda at: (at / "config.json").write_text("{"), "config.json cannot be used"),
    "no checkpoint": (
        lambda at: [one.unlink() for one in at.glob("model*")],
        r"no safetensors checkpoint in this folder \(looked for model.safetensors, ",
    ),
    "no folder": (shutil.rmtree, "there is no such file or folder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line(name: str, folder: Path) -> None:
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(policies.CheckpointError, match=message) as raised:
        policies.load_replaced(llama(), folder)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_with_weights_of_another_kind_says_which(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(policies.CheckpointError, match=r"no safetensors checkpoint .*; it has pytorch_model.bin$"):
        policies.load_replaced(llama(), tmp_path)


@pytest.mark.parametrize(("plan", "message"), [("fastest", "no execution plan is called"), ("onednn", "not in float64")])
def test_a_plan_that_cannot_run_is_refused(folder: Path, plan: str, message: str) -> None:
    with pytest.raises(PlanUnavailable, match=message) as raised:
        policies.load_replaced(llama(), folder, plan=plan, dtype=torch.float64)
    assert len(str(raised.value).splitlines()) == 1


def test_a_plan_that_a_model_in_memory_cannot_run_leaves_it_alone() -> None:
    model = tiny().to(torch.float64)
    with pytest.raises(PlanUnavailable, match="float32, not in float64"):
        policies.replace_module(model, plan="onednn")
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"


def test_a_buffer_that_nobody_can_compute_is_refused(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("scale", torch.ones(2), persistent=False)

    save_file(nn.Linear(2, 2).state_dict(prefix="linear."), tmp_path / "own.safetensors")
    with pytest.raises(policies.CheckpointError, match="scale is not saved, and the model does not say how to compute it"):
        policies.load_replaced(Scaled, tmp_path / "own.safetensors")
