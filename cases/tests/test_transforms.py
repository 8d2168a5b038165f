"""Calls of a replaced model that are not of plain numbers: transformed, of fake tensors, exported, traced."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import policies
from harness.case import Case
from harness.nested import tensors_in
from harness.properties.transforms import call_with, weights_of
from harness.registry import CaseEntry
from policies.plans import PlanUnavailable

from .. import CASES
from ..llama import LlamaCase
from ..unet import UNetCase
from ..vae import VAECase
from .diffusion_pairs import pair
from .processors import KINDS, processor

IDS = torch.tensor([[1, 2, 3]])
PLANS = pytest.mark.parametrize("plan", ["plain", "auto", "packed"])


def two(plan: str, attention: str = "eager") -> tuple[Any, Any]:
    """A model, whose eager attention can be differentiated in forward mode, and a replaced copy of it."""
    case = LlamaCase()
    model: Any = case.build(case.simplest.with_value("attention", attention))
    replaced = copy.deepcopy(model)
    policies.replace_module(replaced, plan=plan)
    return model, replaced


@PLANS
def test_a_call_under_a_function_transform_is_the_originals_and_counted(plan: str) -> None:
    model, replaced = two(plan)
    hidden = torch.randn(1, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(1))

    def along(one: Any) -> Tensor:
        both: Any = torch.func.jvp(lambda x: one(inputs_embeds=x).last_hidden_state, (hidden,), (hidden.flip(1),))
        tangent: Tensor = both[1]
        return tangent

    torch.testing.assert_close(along(replaced), along(model))
    state = replaced.layers[0].fused
    assert (state.calls, dict(state.fallbacks)) == (0, {"a function transform": 1})


@pytest.mark.parametrize("case", [UNetCase(), VAECase()], ids=lambda case: case.name)
def test_a_diffusion_model_under_a_function_transform_is_the_original_and_counts_it(case: Case) -> None:
    original, replaced, inputs = pair(case, eager_attention=True)

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return next(iter(call_with(weights, case.run, model, inputs).values())).square().sum()

        taken: dict[str, Tensor] = torch.func.grad(loss)(weights_of(original))
        return taken

    for (name, mine), its in zip(gradients(original).items(), gradients(replaced).values(), strict=True):
        torch.testing.assert_close(its, mine, atol=1e-4 * max(1.0, mine.abs().max().item()), rtol=1e-3, msg=name)
    assert (replaced.fused.calls, replaced.fused.fallbacks["a function transform"]) == (0, 1)


@PLANS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: model], ids=["a copy", "itself"])
def test_a_call_of_fake_tensors_leaves_no_trace(plan: str, copied: Callable[[Any], Any]) -> None:
    """Tools count and plan with tensors that have no values; what was derived from them would be of no use afterwards."""
    model, replaced = two(plan)
    replaced = copied(replaced)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        assert type(replaced(input_ids=IDS).last_hidden_state) is FakeTensor
    with torch.no_grad():
        torch.testing.assert_close(replaced(input_ids=IDS).last_hidden_state, model(input_ids=IDS).last_hidden_state)
    assert not any(type(one) is FakeTensor for one in (*replaced.parameters(), *replaced.buffers()))


EXPORTED = tuple(entry for entry in CASES if entry.name not in ("megatron", "unet", "vae"))
"""Cases of layers whose originals torch.export takes."""


@pytest.mark.parametrize("entry", EXPORTED, ids=lambda entry: entry.name)
def test_an_exported_program_gives_what_the_original_gives(entry: CaseEntry) -> None:
    """With its parameters exchanged for tensors without values, or traced; and the replacement is none the worse for it."""
    case = entry.load()
    original = case.build(case.simplest)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    given = case.inputs(case.simplest).kwargs
    with torch.no_grad(), case.surroundings():
        expected = [*tensors_in(original(**given))]
        for strict in (False, True):
            program = torch.export.export(replaced, (), given, strict=strict)
            program = program if strict else program.run_decompositions()
            found = [*tensors_in(program.module()(**given))]
            assert not any(one.requires_grad for one in found), "the program turns gradients on"
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close([*tensors_in(replaced(**given))], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")  # of weights that lie in one storage
@pytest.mark.parametrize("gradients", [False, True])
def test_an_exported_program_can_be_saved_and_loaded(gradients: bool, tmp_path: Path) -> None:
    model, replaced = two("auto")
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(Of(replaced, lambda model, ids: model(ids, use_cache=False).last_hidden_state), (IDS,))
    torch.export.save(program, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2").module()
    torch.testing.assert_close(again(IDS), model(IDS).last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_exported_for_many_lengths_takes_each_whatever_the_processor(kind: str) -> None:
    """Which kernel is faster by a weight of published size may depend on the number of rows."""
    case = LlamaCase()
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 2, "num_key_value_heads": 2}
    original = case.build(case.simplest, **sizes)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    many = {"x": {1: torch.export.Dim("tokens", min=2, max=300)}}
    with torch.no_grad(), processor(kind):
        call = Of(replaced, lambda model, ids: model(ids, use_cache=False).last_hidden_state)
        program = torch.export.export(call, (IDS,), dynamic_shapes=many, strict=False).module()
        for tokens in (2, 20, 300):
            ids = IDS[:, :2].repeat(1, 150)[:, :tokens]
            expected = original(ids, use_cache=False).last_hidden_state
            torch.testing.assert_close(program(ids), expected, rtol=1e-3, atol=1e-4)


def test_a_packed_model_cannot_be_exported_and_says_what_can() -> None:
    _, replaced = two("packed")
    with pytest.raises(PlanUnavailable, match=r"packed cannot be exported: .* replace with plan='auto'"):
        torch.export.export(replaced, (IDS,), strict=False)


TRACES = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")


class Of(nn.Module):
    """What ``call`` makes of ``model``, as a function of tensors alone."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, x)


@TRACES
@pytest.mark.parametrize("plan", ["plain", "auto"])
def test_a_traced_model_gives_what_the_original_gives(plan: str) -> None:
    model, replaced = two(plan, attention="sdpa")
    with torch.no_grad():
        traced = torch.jit.trace(Of(replaced, lambda one, ids: one(input_ids=ids, use_cache=False).last_hidden_state), IDS)
        torch.testing.assert_close(traced(IDS.flip(1)), model(input_ids=IDS.flip(1)).last_hidden_state)
    assert "a trace for TorchScript" in replaced.layers[0].fused.fallbacks


@TRACES
@pytest.mark.parametrize(("case", "name"), [(UNetCase(), "sample"), (VAECase(), "image")], ids=["unet", "vae"])
def test_a_traced_diffusion_model_gives_what_the_original_gives(case: Case, name: str) -> None:
    original, replaced, inputs = pair(case)

    def call(one: nn.Module, x: Tensor) -> Tensor:
        return next(iter(case.run(one, dataclasses.replace(inputs, kwargs={**inputs.kwargs, name: x})).values()))

    with torch.no_grad():
        traced = torch.jit.trace(Of(replaced, call), inputs.kwargs[name])
        other = inputs.kwargs[name].flip(-1)
        torch.testing.assert_close(traced(other), call(original, other), rtol=1e-4, atol=1e-4)
    assert replaced.fused.fallbacks["a trace for TorchScript"] > 0


@TRACES
def test_a_packed_model_cannot_be_traced_and_says_what_can() -> None:
    _, replaced = two("packed")
    with pytest.raises(PlanUnavailable, match=r"packed cannot be traced: .* replace with plan='auto'"):
        torch.jit.trace(Of(replaced, lambda one, x: one(input_ids=x).last_hidden_state), IDS)


@PLANS
def test_a_call_made_while_another_thread_exports_is_a_call_like_any_other(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That, too, torch says of every thread's calls."""
    model, replaced = two(plan)
    replaced(IDS)
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    with torch.no_grad():
        torch.testing.assert_close(replaced(IDS).last_hidden_state, model(IDS).last_hidden_state)
    assert replaced.layers[0].fused.calls == 2


def test_a_call_made_while_another_thread_compiles_is_a_call_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says of every thread's calls that they are being compiled for as long as one thread compiles anything."""
    _, replaced = two("auto")
    seen: list[Any] = []
    replaced.layers[0].mlp.up_proj.register_forward_hook(lambda *args: seen.append(args))
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    with torch.no_grad():
        replaced(IDS)
    assert len(seen) == 1
    assert dict(replaced.layers[0].fused.fallbacks) == {"a forward hook on Linear": 1}
