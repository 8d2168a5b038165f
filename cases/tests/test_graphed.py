"""The plans ``graphed`` and ``compiled``: each call of a Transformer layer that a graph can repeat is replayed from one."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import policies
from cases import CASES
from harness.case import Case, Inputs
from harness.check import check_property
from harness.placed import placed
from harness.plans import by_plan
from harness.profiles import depth
from harness.properties import Property
from harness.properties.cache import with_cache
from harness.registry import CaseEntry, choose
from harness.trial import fused_states, graphs_of
from policies.plans import CAPTURED, PlanUnavailable

from ..bert import BertCase
from ..llama import LlamaCase
from .graph_calls import DEVICES
from .table import LAYERED, see_held, table

pytestmark = pytest.mark.usefixtures("no_gradients")

FEW = depth("quick", 8)


@pytest.fixture(params=[plan.value for plan in CAPTURED])
def plan(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def holds(entry: CaseEntry, prop: Property, plan: str) -> None:
    """On a CPU the emulator captures, alike in every dtype: fewer examples than a dtype's kernels ask for. And each size is
    compiled anew, which takes longer than all else."""
    few = dataclasses.replace(prop, least=min(max(1, prop.least // 2), FEW.examples))
    with by_plan(plan) as replacer:
        verdict = check_property(few, entry.load(), profile=FEW, seed=1, policy=plan, replacer=replacer).verdict
    see_held(verdict)


@pytest.mark.parametrize(("entry", "prop"), table(choose(CASES, ("bert", "llama")), without=("refusal",), one_in=2))
def test_every_property_holds_of_graphed_layers(entry: CaseEntry, prop: Property) -> None:
    """Of a post-norm layer with cross-attention, or of one with grouped heads."""
    holds(entry, prop, "graphed")


@pytest.mark.parametrize(("entry", "prop"), table(choose(CASES, ("llama",)), without=("refusal",)))
def test_every_property_holds_of_compiled_layers(entry: CaseEntry, prop: Property) -> None:
    holds(entry, prop, "compiled")


@pytest.mark.parametrize("entry", LAYERED, ids=lambda entry: entry.name)
def test_the_second_call_of_a_layer_is_replayed_from_the_graph_of_the_first(entry: CaseEntry, plan: str, device: str) -> None:
    """Else properties would hold of graphs because there are none."""
    case = placed(entry.load(), device)
    with by_plan(plan, device) as replacer, case.surroundings():
        original = case.build(case.simplest)
        model = copy.deepcopy(original)
        replacer(model)
        for seed in (1, 2):
            example = type(case.simplest)(case.simplest.values, seed)
            expected, actual = (case.run(one, case.inputs(example)) for one in (original, model))
            for name, tensor in expected.items():
                assert torch.allclose(tensor, actual[name], atol=1e-4)
        for graph in graphs_of(model):
            assert (graph.captures, graph.replays, dict(graph.eager)) == (1, 2, {})
        assert len(graphs_of(model)) == case.expected(case.simplest)


def ready(case: Case, plan: str, device: str) -> tuple[nn.Module, nn.Module, Inputs]:
    """An original, its replacement, and inputs."""
    case = placed(case, device)
    original = case.build(case.simplest)
    model = copy.deepcopy(original)
    with by_plan(plan, device) as replacer:
        replacer(model)
    return original, model, case.inputs(case.simplest)


def same(original: nn.Module, model: nn.Module, **kwargs: Any) -> bool:
    mine, its = (one(**copy.deepcopy(kwargs)).last_hidden_state for one in (original, model))
    return torch.allclose(mine, its, atol=1e-5)


def test_a_call_with_a_cache_runs_plain_and_is_counted(plan: str, device: str) -> None:
    original, model, inputs = ready(LlamaCase(), plan, device)
    assert same(original, model, **with_cache(inputs).kwargs)
    (graph,) = graphs_of(model)
    assert graph.captures == 0 and graph.eager.total() == 1
    (state,) = fused_states(model)
    assert (state.calls, dict(state.fallbacks)) == (1, {})


@pytest.mark.parametrize("how", ["in place", "in other memory", "anew", "in another dtype"])
def test_weights_that_change_after_a_capture_count(plan: str, device: str, how: str) -> None:
    original, model, inputs = ready(BertCase(), plan, device)
    assert same(original, model, **inputs.kwargs)
    for one in (original, model):
        layer = next(module for module in one.modules() if type(module).__name__.endswith("BertLayer"))
        weight = layer.intermediate.dense.weight
        if how == "in place":
            weight.mul_(-2)
        elif how == "in other memory":
            weight.data = weight.data * -2
        elif how == "anew":
            layer.intermediate.dense.weight = nn.Parameter(weight * -2)
        else:
            one.double()
    assert same(original, model, **inputs.kwargs)


def test_a_layer_whose_calls_are_never_alike_soon_runs_plain(plan: str, device: str) -> None:
    """A capture takes as long as ten calls."""
    original, model, _ = ready(LlamaCase(), plan, device)
    for tokens in range(1, 22):
        ids = torch.arange(tokens, device=device)[None] % 30
        assert same(original, model, input_ids=ids, use_cache=False)
    (graph,) = graphs_of(model)
    assert (graph.captures, len(graph), dict(graph.eager)) == (16, 8, {"calls are seldom of one form twice": 5})
    assert same(original, model, input_ids=ids[:, :16], use_cache=False)
    assert graph.replays == 17


def test_a_result_that_is_kept_is_not_overwritten_by_the_next_call(plan: str, device: str) -> None:
    original, model, _ = ready(BertCase(), plan, device)
    (layer,) = [module for module in model.modules() if hasattr(type(module), "_fused_policy")]
    hidden = [torch.randn(1, 3, original.config.hidden_size, device=device) for _ in range(2)]
    first = layer(hidden[0])
    kept = copy.deepcopy(first)
    layer(hidden[1])
    assert torch.equal(*(one if isinstance(one, torch.Tensor) else one[0] for one in (first, kept)))


def test_the_plan_is_visible_and_a_copied_layer_begins_without_graphs(plan: str) -> None:
    _, model, inputs = ready(BertCase(), plan, "cpu")
    assert f"plan: {plan} by emulator, QKV packed" in repr(model)
    model(**inputs.kwargs)
    (layer,) = [module for module in model.modules() if hasattr(type(module), "_fused_policy")]
    assert graphs_of(model)[0].held_bytes > 0
    copied = copy.deepcopy(layer)
    assert copied.fused.graph.captures == 0


def test_where_there_is_no_gpu_the_plan_is_refused_in_one_line_and_the_model_is_as_it_was(plan: str) -> None:
    model = BertCase().build(BertCase().simplest)
    with pytest.raises(PlanUnavailable, match=rf"^plan {plan} runs on CUDA, not on cpu; move the model there first, or use"):
        policies.replace_module(model, plan=plan)
    assert not fused_states(model)
