"""A replaced model's ``state_dict`` is as good as its original's to whoever saves it or writes to it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import policies
from harness.registry import CaseEntry

from .. import CASES
from .saved import same

HERE = [entry for entry in CASES if entry.unavailable is None]
SAVED = [entry for entry in HERE if entry.name != "megatron"]
"""Without what safetensors cannot save of an original either: Megatron's linears have entries that are no tensors."""
PLANS = ("auto", "plain", "packed")


def pair(entry: CaseEntry, plan: str) -> tuple[nn.Module, nn.Module, Any]:
    """An original, a replaced copy of it that was called, and what calls either."""
    case = entry.load()
    original = case.build(case.simplest)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced, plan=plan)

    def call(model: nn.Module) -> Tensor:
        with torch.no_grad(), case.surroundings():
            return next(iter(case.run(model, case.inputs(case.simplest)).values()))

    call(replaced)
    return original, replaced, call


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("entry", SAVED, ids=lambda entry: entry.name)
def test_a_library_that_drops_weights_of_one_storage_keeps_all_of_them(entry: CaseEntry, plan: str, tmp_path: Path) -> None:
    """As safetensors and accelerate do, when queries, keys and values lie together."""
    original, replaced, _ = pair(entry, plan)
    save_model(replaced, str(tmp_path / "model.safetensors"))
    again = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_model(again, str(tmp_path / "model.safetensors"))
    same(again, original)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("entry", HERE, ids=lambda entry: entry.name)
def test_what_is_written_into_a_state_dict_reaches_the_layer_and_is_counted(entry: CaseEntry, plan: str) -> None:
    original, replaced, call = pair(entry, plan)
    versions = {name: parameter._version for name, parameter in replaced.named_parameters()}
    for model in (original, replaced):
        saved = [value for value in model.state_dict().values() if isinstance(value, Tensor) and value.is_floating_point()]
        for value in {value.data_ptr(): value for value in saved}.values():
            value.mul_(1.5)
    torch.testing.assert_close(call(replaced), call(original), rtol=1e-3, atol=1e-4)
    assert all(parameter._version > versions[name] for name, parameter in replaced.named_parameters())


def test_a_value_of_a_state_dict_outlives_its_model_and_nothing_outlives_it() -> None:
    original, replaced, _ = pair(HERE[0], "auto")
    attention = replaced.encoder.layer[0].attention.self
    storage = StorageWeakRef(attention.query.weight.untyped_storage())
    assert StorageWeakRef(attention.key.weight.untyped_storage()).cdata == storage.cdata, "they do not lie together"
    kept = replaced.state_dict()
    del replaced, attention
    for name, value in original.state_dict().items():
        assert torch.equal(kept[name], value)
    assert not storage.expired()
    del kept
    assert storage.expired()
