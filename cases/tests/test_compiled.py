"""What plan ``compiled`` has over ``graphed``: the kernels that are captured. The rules of graphs are asked of both elsewhere."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import shutil
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from harness.case import Case
from harness.placed import placed
from harness.plans import by_plan
from harness.registry import CaseEntry
from harness.trial import graphs_of
from policies import replace_module
from policies.fused.capture import EmulatorBackend
from policies.fused.compiled import CompiledLayer
from policies.fused.graphs import Graphed
from policies.fused.trees import NotCapturableError

from ..bert import BertCase
from .graph_calls import NEEDS_GPU
from .table import LAYERED


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


class Counting:
    """Runs what it is given as it is, and counts."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.compiled += 1
        return module.forward


def test_layers_that_are_alike_share_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A form of call takes seconds to compile, and models have dozens of layers."""
    compiler = Counting()
    monkeypatch.setattr(EmulatorBackend, "compiler", compiler)
    case = BertCase()
    example = case.simplest.with_value("layers", 2)
    model = case.build(example)
    with by_plan("compiled") as replacer:
        replacer(model)
    case.run(model, case.inputs(example))
    assert [graph.captures for graph in graphs_of(model)] == [1, 1]
    assert compiler.compiled == 1


def test_more_forms_than_torch_compiles_of_one_function_are_all_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Counting()
    monkeypatch.setattr(EmulatorBackend, "compiler", compiler)
    model = BertCase().build(BertCase().simplest)
    with by_plan("compiled") as replacer:
        replacer(model)
    forms = 2 + torch._dynamo.config.recompile_limit
    for tokens in range(1, 1 + forms):
        model(torch.arange(tokens)[None] % 20)
    (graph,) = graphs_of(model)
    assert (graph.captures, compiler.compiled, dict(graph.eager)) == (forms, forms, {})


def _right_twice(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> Graphed:
    """The graph of a layer that is called twice, right each time, by plan ``compiled`` with ``compiler``."""
    monkeypatch.setattr(EmulatorBackend, "compiler", staticmethod(compiler))
    case = BertCase()
    original = case.build(case.simplest)
    model = copy.deepcopy(original)
    with by_plan("compiled") as replacer:
        replacer(model)
    inputs = case.inputs(case.simplest)
    for _ in range(2):
        mine, its = (case.run(one, inputs)["last_hidden_state"] for one in (original, model))
        assert torch.allclose(mine, its, atol=1e-5)
    (graph,) = graphs_of(model)
    return graph


def test_a_call_that_cannot_be_compiled_runs_plain_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise OSError("no compiler here\nand more of that")

    graph = _right_twice(fails, monkeypatch)
    ((reason, times),) = graph.eager.items()
    assert reason.startswith("cannot be compiled: ") and "no compiler here" in reason and "\n" not in reason
    assert times == 2


@pytest.mark.parametrize("share", [0.2, float("nan")])
def test_kernels_that_compute_something_else_are_not_captured(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler's fault is no reason for a wrong result."""

    def wrong(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        return lambda *args: tuple(one * (1 + share) for one in module.forward(*args))

    graph = _right_twice(wrong, monkeypatch)
    assert (graph.captures, dict(graph.eager)) == (0, {"a replay gives something else than the call": 2})


def test_what_was_compiled_keeps_no_weight_of_a_model_that_is_gone() -> None:
    case = BertCase()
    model = case.build(case.simplest)
    with by_plan("compiled") as replacer:
        replacer(model)
    case.run(model, case.inputs(case.simplest))
    assert graphs_of(model)[0].captures == 1
    weights = [weakref.ref(one) for one in model.parameters()]
    del model
    gc.collect()
    assert not any(one() is not None for one in weights)


def _core_and_call(case: Case, device: str) -> tuple[Any, tuple[Any, ...]]:
    """A fused layer, and what its core is called with."""
    calls = []
    case = placed(case, device)
    with case.surroundings():
        model = case.build(case.simplest)
        replace_module(model, plan="plain")
        layer = next(module for module in model.modules() if hasattr(type(module), "_fused_policy"))
        core = layer.fused.core
        honest = type(core).__call__

        def recorded(self: Any, *args: Any) -> Any:
            calls.append(args)
            return honest(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(core), "__call__", recorded)
            case.run(model, case.inputs(case.simplest))
    return core, calls[0]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch generates C++ here, and there is no compiler")
@pytest.mark.parametrize("entry", LAYERED, ids=lambda entry: entry.name)
def test_with_code_generated_for_a_cpu_every_layer_computes_the_same(entry: CaseEntry) -> None:
    """In every other test without a GPU what is compiled runs as it was traced."""
    core, call = _core_and_call(entry.load(), "cpu")
    assert torch.allclose(core(*call), CompiledLayer(core, "inductor")(*call), atol=1e-5)


def test_kernels_are_chosen_by_rule_and_not_by_what_is_faster_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a layer and its copy differ in their last bits."""
    asked = []

    def compiles(inductor: Any, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        asked.append(inductor.config)
        return module.forward

    monkeypatch.setattr(torch._TorchCompileInductorWrapper, "__call__", compiles)
    core, call = _core_and_call(BertCase(), "cpu")
    CompiledLayer(core, "inductor")(*call)
    assert asked == [{"deterministic": True}]


def test_what_is_raised_while_compiling_is_a_reason_not_to_capture() -> None:
    core, call = _core_and_call(BertCase(), "cpu")
    with pytest.raises(NotCapturableError, match=r"^cannot be compiled: .*nothing of this name"):
        CompiledLayer(core, "nothing of this name")(*call)


def _epsilon(layer: Any) -> Any:
    layer.output.LayerNorm.eps = 1e-3
    return layer


def _assigned(layer: nn.Module) -> nn.Module:
    layer.load_state_dict({name: 1.3 * one for name, one in layer.state_dict().items()}, assign=True)
    return layer


BETWEEN: dict[str, Callable[[Any], Any]] = {
    "moved": lambda layer: layer.double(),
    "copied": copy.deepcopy,
    "pickled": lambda layer: pickle.loads(pickle.dumps(layer)),
    "assigned": _assigned,
    "set": _epsilon,
}


@pytest.mark.parametrize("between", BETWEEN)
def test_a_layer_that_nobody_has_called_since_is_one_graph_and_can_be_exported(between: str) -> None:
    case = BertCase()
    model: Any = case.build(case.simplest)
    original = model.encoder.layer[0]
    layer = copy.deepcopy(original)
    replace_module(layer)
    hidden = torch.randn(1, 3, original.attention.self.query.in_features, dtype=[None, torch.float64][between == "moved"])
    expected = BETWEEN[between](original)(hidden)
    for how in ("compiled", "exported"):
        torch.compiler.reset()
        twin = BETWEEN[between](copy.deepcopy(layer))
        if how == "compiled":
            called: Any = torch.compile(twin, backend="eager", fullgraph=True)
        else:
            called = torch.export.export(twin, (hidden,)).module()
        torch.testing.assert_close(called(hidden), expected)


@pytest.mark.parametrize("between", ["moved", "copied", "pickled"])
def test_a_layer_that_was_moved_or_copied_is_still_fused_where_it_is_compiled_next(between: str) -> None:
    case = BertCase()
    model: Any = case.build(case.simplest)
    layer = model.encoder.layer[0]
    replace_module(layer)
    assert BETWEEN[between](layer)._fused_looked_at


def test_a_compiled_layer_follows_its_weights_to_other_memory() -> None:
    case = BertCase()
    model: Any = case.build(case.simplest)
    original = model.encoder.layer[0]
    layer = copy.deepcopy(original)
    replace_module(layer)
    hidden = torch.randn(1, 3, layer.attention.self.query.in_features)
    compiled: Any = torch.compile(layer, backend="eager", fullgraph=True)
    compiled(hidden)
    moved = 1.3 * parameters_to_vector(original.parameters())
    for one in (original, layer):
        vector_to_parameters(moved.clone(), one.parameters())
    torch.testing.assert_close(compiled(hidden), original(hidden))


def test_a_layer_whose_activation_is_a_partial_function_is_one_graph() -> None:
    """A compiler does not trace the identity of one."""
    case = BertCase()
    model: Any = case.build(case.simplest)
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.GELU(approximate="tanh")
        layer.intermediate.intermediate_act_fn.act = functools.partial(nn.functional.gelu, approximate="tanh")
    replace_module(model, plan="plain")
    layer = model.encoder.layer[0]
    hidden = torch.randn(1, 3, layer.attention.self.query.in_features)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(hidden), layer(hidden))


@NEEDS_GPU
@pytest.mark.parametrize("entry", LAYERED, ids=lambda entry: entry.name)
def test_on_a_gpu_graphs_outlive_what_compiled_their_kernels(entry: CaseEntry) -> None:
    case = placed(entry.load(), "cuda")
    with by_plan("compiled", "cuda") as replacer, case.surroundings():
        model = case.build(case.simplest)
        replacer(model)
        inputs = case.inputs(case.simplest)
        before = case.run(model, inputs)
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        after = case.run(model, inputs)
        assert all(torch.equal(before[name], after[name]) for name in before)
        for graph in graphs_of(model):
            assert (graph.captures, graph.replays, dict(graph.eager)) == (1, 2, {})
