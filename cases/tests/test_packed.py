"""The plan ``packed``: weights lie in oneDNN's layout and nowhere else, and whoever touches a parameter gets its values."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import policies
from cases import memory
from cases.bert import BertCase
from cases.gpt2 import GPT2Case
from cases.llama import LlamaCase
from harness.bench.columns import SDPA, original_columns, planned_column
from harness.bench.gate import show_equal
from harness.check import check_property
from harness.exact import exact_mode
from harness.nested import cast
from harness.plans import by_plan
from harness.profiles import depth
from harness.properties import BY_NAME, Property
from harness.properties.memory import bytes_held
from harness.registry import CaseEntry
from harness.trial import fused_states
from policies.fused import onednn
from policies.fused import packed as packed_module
from policies.fused.packed import PackedParameter, held_bytes
from policies.plans import Plan, PlanUnavailable

from .packed_models import output, packed, ready
from .table import LAYERED, see_held, table

FEW = depth("quick", 8)


@pytest.mark.parametrize(("entry", "prop"), table(LAYERED, without=("refusal",), one_in=6))
def test_every_property_holds_of_packed_weights(entry: CaseEntry, prop: Property) -> None:
    """In float64 weights are packed by the emulator, in float32 and bfloat16 by oneDNN."""
    with by_plan("packed") as replacer:
        checked = check_property(prop, entry.load(), profile=FEW, seed=1, policy="packed", replacer=replacer)
    see_held(checked.verdict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("entry", LAYERED, ids=lambda entry: entry.name)
def test_all_weights_that_only_the_layer_holds_are_packed(entry: CaseEntry, dtype: torch.dtype) -> None:
    """Else properties would hold of packed weights because there are none."""
    if dtype is torch.bfloat16 and not onednn.multiplies(dtype):
        pytest.skip("this processor packs no such weights")
    case = entry.load()
    with by_plan("packed") as replacer, case.surroundings():
        model = case.build(case.simplest).to(dtype)
        replacer(model)
        for state in fused_states(model):
            assert state.core.packer.held > 0
            assert f"plan: packed, {state.core.packer.held} of {state.core.packer.held} weights" in repr(model)


def test_a_packed_parameter_keeps_its_form_and_holds_no_memory() -> None:
    original = BertCase().build(BertCase().simplest)
    model, _ = ready(BertCase())
    names = packed(model)
    assert len(names) == 6
    for name, parameter in model.named_parameters():
        mine = original.get_parameter(name)
        assert isinstance(parameter, nn.Parameter)
        assert (parameter.shape, parameter.dtype, parameter.requires_grad) == (mine.shape, mine.dtype, mine.requires_grad)
        assert (parameter.untyped_storage().nbytes() == 4) == (name in names)
    assert packed(model) == names


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
@pytest.mark.skipif(not onednn.multiplies(torch.bfloat16), reason="this processor packs no such weights")
def test_packing_many_weights_leaves_no_holes_in_memory() -> None:
    """In a process of its own: 400 MB in weights of 4 MB, which glibc does not map one by one."""
    found = memory.child("replace", "", 2e8, "bfloat16", "packed")
    assert found["rest_anonymous"] <= 1.01


TOUCHES = {
    "read": lambda model, name: model.get_parameter(name).sum(),
    "state_dict": lambda model, name: model.state_dict(),
    "data": lambda model, name: model.get_parameter(name).data,
    "numpy": lambda model, name: model.get_parameter(name).detach().numpy(),
    "deepcopy": lambda model, name: copy.deepcopy(model.get_parameter(name)),
    "in a list": lambda model, name: torch._foreach_mul([model.get_parameter(name)], 2.0),
    "printed": lambda model, name: repr(model.get_parameter(name)),
    "strides": lambda model, name: model.get_parameter(name).stride(),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_touching_a_parameter_gives_it_its_values_back_and_the_next_call_packs_again(touch: str) -> None:
    case = GPT2Case()
    original = case.build(case.simplest)
    model, inputs = ready(case)
    before = output(case, model, inputs)
    names = packed(model)
    TOUCHES[touch](model, names[0])
    assert names[0] not in packed(model)
    gc.collect()
    assert torch.equal(model.get_parameter(names[0]), original.get_parameter(names[0]))
    assert torch.equal(output(case, model, inputs), before)
    assert packed(model) == names


@pytest.mark.parametrize(
    "transform", [torch.func.grad, torch.func.jacrev, lambda loss: lambda given: torch.func.vjp(loss, given)[0]]
)
def test_a_transform_of_a_call_with_packed_parameters_has_their_values(transform: Any) -> None:
    case = BertCase()
    original = case.build(case.simplest)
    model, inputs = ready(case)
    output(case, model, inputs)
    assert packed(model)

    def transformed(one: nn.Module) -> Any:
        def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
            result: torch.Tensor = torch.func.functional_call(one, given, (), dict(inputs.kwargs)).last_hidden_state
            return result.square().sum()

        return transform(loss)(dict(one.named_parameters()))

    torch.testing.assert_close(transformed(model), transformed(original), rtol=0, atol=0)


UNASKED = {
    "torch.tensor": lambda parameter: torch.tensor(parameter),
    "vmap": lambda parameter: torch.func.vmap(torch.sum)(parameter),
    "DLPack": lambda parameter: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(parameter)),
    "a parameter of it": lambda parameter: nn.Parameter(parameter, requires_grad=False),
    "an embedding": lambda parameter: nn.Embedding.from_pretrained(parameter).weight,
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("read", UNASKED)
def test_what_does_not_ask_for_a_packed_parameters_values_has_them_of_a_detached_one(read: str) -> None:
    case = GPT2Case()
    original = case.build(case.simplest)
    model, _ = ready(case)
    name = packed(model)[0]
    expected = UNASKED[read](original.get_parameter(name).detach())
    assert torch.equal(UNASKED[read](model.get_parameter(name).detach()), expected)


def test_values_come_back_bit_for_bit_whatever_they_are() -> None:
    case = BertCase()
    model = case.build(case.simplest)
    weight = model.encoder.layer[0].intermediate.dense.weight
    special = torch.tensor([torch.nan, -0.0, torch.inf, -torch.inf, 1e-45, -1e-40, torch.finfo(torch.float32).max])
    with torch.no_grad():
        weight.view(-1)[: len(special)] = special
    bits = weight.detach().clone().view(torch.int32)
    handle = policies.replace_module(model, plan="packed")
    assert type(weight) is PackedParameter
    handle.revert()
    assert type(weight) is nn.Parameter
    assert torch.equal(weight.view(torch.int32), bits)


def test_new_data_of_a_packed_parameter_is_what_computes() -> None:
    case = LlamaCase()
    model, inputs = ready(case)
    before = output(case, model, inputs)
    parameter = model.get_parameter(packed(model)[0])
    parameter.data = parameter.data * 3.0
    assert not torch.allclose(output(case, model, inputs), before)
    assert type(parameter) is PackedParameter


def test_a_torch_without_packed_linears_refuses_the_plan_and_changes_nothing() -> None:
    model = BertCase().build(BertCase().simplest)
    with (
        mock.patch.object(onednn, "packs", return_value=False),
        pytest.raises(PlanUnavailable, match=r"^plan packed: this build of torch has no packed oneDNN linear"),
    ):
        policies.replace_module(model, plan="packed")
    assert type(model.encoder.layer[0]).__name__ == "BertLayer"


def test_a_model_that_cannot_run_packed_is_refused_and_left_alone() -> None:
    model = BertCase().build(BertCase().simplest).double()
    with pytest.raises(PlanUnavailable, match=r"^plan packed runs on this CPU in .*float32, not in float64; use plain"):
        policies.replace_module(model, plan="packed")
    assert type(model.encoder.layer[0]).__name__ == "BertLayer"


def test_weights_from_a_checkpoint_are_packed_as_they_come(tmp_path: Path) -> None:
    case = LlamaCase()
    original = case.build(case.simplest)
    original.save_pretrained(tmp_path)
    model = policies.load_replaced(type(original), tmp_path, plan="packed").model
    expected, inputs = ready(case)
    assert packed(model) == packed(expected)
    assert torch.equal(output(case, model, inputs), output(case, expected, inputs))


def test_operators_that_misbehave_make_the_plan_unavailable() -> None:
    onednn.packs.cache_clear()
    try:
        with mock.patch.object(onednn, "unpack", lambda weight: weight.to_dense() + 1.0):
            assert not onednn.packs()
        onednn.packs.cache_clear()
        with mock.patch.object(onednn, "pack", mock.Mock(side_effect=AttributeError("no such operator"))):
            assert not onednn.packs()
        onednn.packs.cache_clear()
        with exact_mode():
            assert onednn.packs()
    finally:
        onednn.packs.cache_clear()


def test_a_weight_that_padding_would_make_larger_stays_plain() -> None:
    with mock.patch.object(packed_module, "_ROOM", 0):
        model, inputs = ready(BertCase())
    assert packed(model) == []
    assert "packed, 0 of 6 weights" in repr(model)
    assert torch.isfinite(output(BertCase(), model, inputs)).all()


def test_a_model_that_moves_to_another_dtype_runs_plain() -> None:
    case = BertCase()
    model, _ = ready(case)
    model.double()
    assert "packed, 0 of 6 weights" in repr(model)
    inputs = cast(case.inputs(case.simplest), torch.float64)
    assert output(case, model, inputs).dtype is torch.float64


def test_at_real_size_packed_weights_take_a_hundredth_more_at_most() -> None:
    """The bench's column: a layer of a published size, its weights in one place only."""
    case = BertCase()
    workload = case.workloads[0]
    module = case.workload_module(workload)
    plain = bytes_held(module)
    column = planned_column(case, module, workload, Plan.PACKED)
    assert column.name == "replaced, packed"
    assert column.replaced == 1
    left = sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in column.module.parameters()}.values())
    assert plain <= left + held_bytes(column.module) <= 1.01 * plain
    assert bytes_held(module) == plain
    with torch.no_grad():
        (original,) = (one for one in original_columns(case, module, workload) if one.name == SDPA)
        assert show_equal(original.output(), original, column, "float32") < 1e-4


def test_packed_weights_go_with_their_model_and_wait_for_no_collector() -> None:
    model, inputs = ready(LlamaCase())
    output(LlamaCase(), model, inputs)
    held = weakref.ref(model.get_parameter(packed(model)[0])._packed_in)  # type: ignore[attr-defined]
    gc.collect()
    gc.disable()
    try:
        del model
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("fault", "prop"),
    [
        (mock.patch.object(PackedParameter, "__torch_function__", nn.Parameter.__torch_function__), "parameter accounting"),
        (mock.patch.object(packed_module.PackedWeight, "release", return_value=None), "revert"),
        (mock.patch.object(packed_module, "_let_go"), "storages"),
        (mock.patch("policies.fused.state.FusedState.stale", return_value=False), "parameter accounting"),
    ],
    ids=["touching gives nothing back", "nothing is ever given back", "a plain copy stays", "nobody looks"],
)
def test_a_fault_in_packing_is_noticed(fault: Any, prop: str) -> None:
    with fault, by_plan("packed") as replacer:
        verdict = check_property(
            BY_NAME[prop], LlamaCase(), profile=depth("quick", 40), seed=1, policy="packed", replacer=replacer, explain=False
        ).verdict
    assert verdict.outcome != "held"
