"""Graph capture: a call through captured graphs gives what the function itself gives, whatever comes before it.

The emulator stands in for CUDA graphs. Each rule is stated by a test, the state machine looks for sequences of calls
that break any of them, and wrappers with the field's known faults (FAULTS F73 to F78, M22) show that it finds what it
is for.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor, nn

from policies.fused import graphs as graphs_module
from policies.fused.capture import EmulatorBackend
from policies.fused.graphs import Capture, Graphed

LIMIT = 4
Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    sample: Tensor
    extra: Any = None


class Model(nn.Module):
    """Takes nested arguments and returns nested results, as diffusion models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3).requires_grad_(False)
        self.scale = 1.0

    def forward(self, x: Tensor, *, added: Any = None, factor: float = 1.0, as_dict: bool = True) -> Any:
        if x.shape[0] == 5:
            raise ValueError("five rows")
        out = torch.tanh(self.linear(x)) * factor * self.scale
        for extra in _tensors(added):
            out = out + extra.to(out.dtype).mean()
        halves = out.split(1, dim=-1)
        return Output(out, {"halves": list(halves), "again": out}) if as_dict else (out, factor)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for one in tree for leaf in _tensors(one)] if isinstance(tree, (list, tuple)) else []


def same(mine: Any, its: Any) -> bool:
    """Equal to the bit, with equal types, dtypes and strides all the way down."""
    if type(mine) is not type(its):
        return False
    if isinstance(mine, Tensor):
        signs = torch.equal(mine.signbit(), its.signbit())
        return mine.dtype == its.dtype and mine.stride() == its.stride() and torch.equal(mine, its) and signs
    if dataclasses.is_dataclass(mine) and not isinstance(mine, dict):
        return same(vars(mine), vars(its))
    if isinstance(mine, dict):
        return list(mine) == list(its) and all(same(mine[key], its[key]) for key in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(its) and all(map(same, mine, its))
    return repr(mine) == repr(its)


class Calls(RuleBasedStateMachine):
    """Any sequence of calls, and of what may happen between them."""

    wrapper: type[Graphed] = Graphed

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Model()
        self.graphed = self.wrapper(self.model.forward, backend=EmulatorBackend(), modules=(self.model,), limit=LIMIT)
        self.kept: list[tuple[Any, Any]] = []
        self.signature: dict[str, Any] | None = None

    @rule(
        rows=st.integers(1, 5),
        nesting=st.sampled_from(("none", "dict", "list", "pair", "deep")),
        width=st.sampled_from((3, 1)),
        factor=st.sampled_from((1.0, 2.0, -0.0, 0.0, 2)),
        as_dict=st.booleans(),
        transposed=st.booleans(),
    )
    def call(self, **signature: Any) -> None:
        """A call of any signature: same result as the function, same exception, inputs as they were."""
        self.signature = signature
        self._compare(**signature)

    @precondition(lambda self: self.signature is not None)
    @rule(times=st.integers(1, 3))
    def call_alike(self, times: int) -> None:
        """The last signature again, with other values."""
        for _ in range(times):
            self._compare(**self.signature)

    @rule()
    def call_in_many_ways(self) -> None:
        for rows in (1, 2, 3, 4):
            for as_dict in (True, False):
                self._compare(rows, "none", 3, 2.0, as_dict, False)

    def _compare(self, rows: int, nesting: str, width: int, factor: float, as_dict: bool, transposed: bool) -> None:
        dtype = self.model.linear.weight.dtype
        x = torch.randn(3, rows, dtype=dtype).t() if transposed else torch.randn(rows, 3, dtype=dtype)
        kwargs = {"added": _nested(nesting, width), "factor": factor, "as_dict": as_dict}
        if factor == 1.0:
            del kwargs["factor"]
        before = x.clone()
        try:
            expected = self.model(x, **kwargs)
        except ValueError as problem:
            with pytest.raises(ValueError, match=str(problem)):
                self.graphed(x, **kwargs)
            return
        result = self.graphed(x, **kwargs)
        assert same(result, expected)
        assert torch.equal(x, before)
        self.kept.append((result, expected))
        del self.kept[:-6]

    @rule(dtype=st.sampled_from((torch.float32, torch.float64)))
    def change_the_dtype(self, dtype: torch.dtype) -> None:
        self.model.linear.to(dtype)

    @rule()
    def update_a_weight_in_place(self) -> None:
        self.model.linear.weight.mul_(1.5)

    @rule()
    def move_a_weight(self) -> None:
        self.model.linear.weight.data = self.model.linear.weight.data * -0.5

    @rule()
    def exchange_a_weight(self) -> None:
        self.model.linear.weight = nn.Parameter(torch.randn_like(self.model.linear.weight), requires_grad=False)

    @rule(scale=st.sampled_from((1.0, 3.0)))
    def set_an_attribute(self, scale: float) -> None:
        self.model.scale = scale

    @precondition(lambda self: self.kept)
    @rule()
    def write_to_a_result(self) -> None:
        """A caller may do with its results what it likes."""
        result, expected = self.kept.pop()
        for one in (result, expected):
            (one.sample if isinstance(one, Output) else one[0]).zero_()
        assert same(result, expected)
        self.kept.append((result, expected))

    @invariant()
    def results_that_were_kept_stay_what_they_were(self) -> None:
        assert all(same(result, expected) for result, expected in self.kept)

    @invariant()
    def captures_are_bounded(self) -> None:
        assert len(self.graphed) <= LIMIT


def _nested(kind: str, width: int) -> Any:
    one, two = torch.randn(2, width), torch.randn(1, width)
    return {
        "none": None,
        "dict": {"text": one, "time": two},
        "list": [one, two],
        "pair": Pair(one, two),
        "deep": {"a": [one, {"b": (two,)}], "c": OrderedDict(d=one)},
    }[kind]


DEPTH = settings(
    max_examples=40,
    stateful_step_count=25,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_any_sequence_of_calls_and_changes_gives_what_the_function_gives() -> None:
    run_state_machine_as_test(Calls, settings=DEPTH)


class NoKey(Graphed):
    """M22, F73: one graph for all calls, inputs broadcast into it."""

    def _replayed(self, args: Any, kwargs: Any) -> Any:
        if self._kept:
            (capture,) = self._kept.values()
            leaves, _ = graphs_module.flatten((args, {name: kwargs[name] for name in sorted(kwargs)}))
            for static, leaf in zip(capture.inputs, leaves):
                static._base.copy_(leaf)
            capture.recording.replay()
            return graphs_module.unflatten(capture.spec, iter(graphs_module.clone_leaves(capture.leaves)))
        return super()._replayed(args, kwargs)


class ShallowRefresh(Graphed):
    """M22, F74: tensors inside containers keep the first call's values."""

    def _make(self, key: Any, leaves: Any, spec: Any) -> Any:
        made = super()._make(key, leaves, spec)
        if isinstance(made, Capture):
            for static in made.inputs[len(_top_level(spec)) :]:
                static.fill = lambda source: None
        return made


def _top_level(spec: Any) -> list[Any]:
    args, kwargs = spec.children
    return [one for one in (*args.children, *kwargs.children) if type(one).__name__ == "TensorSpec"]


class InputsAliased(Graphed):
    """M22: the first call's own tensors are the graph's inputs, and later calls write into them."""

    def _make(self, key: Any, leaves: Any, spec: Any) -> Any:
        made = super()._make(key, leaves, spec)
        if isinstance(made, Capture) and not hasattr(self, "_first"):
            self._first = leaves
        for first, leaf in zip(getattr(self, "_first", ()), leaves):
            if first is not leaf and first.shape == leaf.shape and first.dtype == leaf.dtype:
                leaf.copy_(first)
        return made


class OutputsAliased(Graphed):
    """M22, F78: results are the graph's own memory."""

    def _replayed(self, args: Any, kwargs: Any) -> Any:
        before = graphs_module.clone_leaves
        graphs_module.clone_leaves = lambda leaves: leaves
        try:
            return super()._replayed(args, kwargs)
        finally:
            graphs_module.clone_leaves = before


class ParitySlots(Graphed):
    """M22: two output buffers by turns, so that the last but one result is overwritten."""

    def _replayed(self, args: Any, kwargs: Any) -> Any:
        leaves, spec = graphs_module.flatten(super()._replayed(args, kwargs))
        self._calls = getattr(self, "_calls", 0) + 1
        slots = self.__dict__.setdefault("_slots", {})
        kept = slots.setdefault((spec, self._calls % 2), leaves)
        for slot, leaf in zip(kept, leaves):
            slot.copy_(leaf)
        return graphs_module.unflatten(spec, iter(kept))


class _Blind:
    def __init__(self, modules: Any) -> None:
        pass

    def changed(self) -> bool:
        return False


class StaleWeights(Graphed):
    """M22: captures are kept when a weight is exchanged or moved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = _Blind(())


class Unbounded(Graphed):
    """Captures are never dropped."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "limit": 10**6})


class DropsKeywords(Graphed):
    """F75: a keyword argument does not reach the function."""

    def _replayed(self, args: Any, kwargs: Any) -> Any:
        return super()._replayed(args, {name: value for name, value in kwargs.items() if name != "added"})


class ExceptionSticks(Graphed):
    """An exception while capturing leaves the wrapper in its capturing state."""

    def _capture(self, leaves: Any, spec: Any) -> Any:
        try:
            return super()._capture(leaves, spec)
        except ValueError:
            self._kept.clear()
            self.function = lambda *args, **kwargs: None
            raise


class ValuesByEquality(Graphed):
    """0.0 and -0.0, 2 and 2.0 share a graph."""

    def _replayed(self, args: Any, kwargs: Any) -> Any:
        if kwargs.get("factor") == 0:
            kwargs = {**kwargs, "factor": self.__dict__.setdefault("_zero", kwargs["factor"])}
        return super()._replayed(args, kwargs)


MUTANTS = (
    NoKey,
    ShallowRefresh,
    InputsAliased,
    OutputsAliased,
    ParitySlots,
    StaleWeights,
    Unbounded,
    DropsKeywords,
    ExceptionSticks,
    ValuesByEquality,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.__name__)
def test_the_state_machine_catches_a_wrapper_with_a_known_fault(mutant: type[Graphed]) -> None:
    machine = type(f"Calls{mutant.__name__}", (Calls,), {"wrapper": mutant})
    quick = settings(DEPTH, phases=(Phase.generate,), max_examples=100, print_blob=False, report_multiple_bugs=False)
    with pytest.raises((AssertionError, RuntimeError, ValueError, TypeError, AttributeError, pytest.fail.Exception)):
        run_state_machine_as_test(machine, settings=quick)


def graphed(function: Any, **kwargs: Any) -> Graphed:
    return Graphed(function, backend=EmulatorBackend(), **kwargs)


def _mutating(x: Tensor, parts: list[Tensor]) -> Tensor:
    return x + parts.pop(0)


EAGER = (
    ("random numbers", lambda x: x * torch.rand_like(x)),
    ("random numbers", lambda x: nn.functional.dropout(x, 0.5)),
    ("values decide", lambda x: x * x.sum().item()),
    ("values decide", lambda x: x if x.sum() > 0 else -x),
    ("values decide", lambda x: x[x > 0]),
    ("values decide", lambda x: x * sum(x.flatten().tolist())),
    ("values decide", lambda x: x * float(x.numpy().sum())),
    ("values decide", lambda x: torch.nonzero(x)),
    ("written to", lambda x: x.mul_(2)),
    ("are returned", lambda x: x),
    ("are returned", lambda x: (x + 1, x[:1])),
    ("class object", lambda x: (x + 1, object())),
)


@pytest.mark.parametrize(("reason", "function"), EAGER)
def test_what_a_graph_cannot_repeat_runs_eagerly_and_says_why(reason: str, function: Any) -> None:
    wrapped = graphed(function)
    for seed in (1, 2, 3):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        theirs = x.clone()
        torch.manual_seed(seed)
        mine = wrapped(x)
        torch.manual_seed(seed)
        expected = function(theirs)
        if reason != "class object":
            assert same(mine, expected)
        assert torch.equal(x, theirs)
    assert wrapped.captures == 0
    (counted,) = wrapped.eager
    assert reason in counted
    assert wrapped.eager[counted] == 3


def test_a_container_that_the_call_empties_is_emptied_for_the_caller() -> None:
    wrapped = graphed(_mutating)
    for _ in range(2):
        parts = [torch.ones(3), torch.zeros(3)]
        assert torch.equal(wrapped(torch.ones(3), parts), torch.full((3,), 2.0))
        assert len(parts) == 1
    assert list(wrapped.eager) == ["containers among its arguments are changed by the call"]


def test_a_generator_argument_runs_eagerly() -> None:
    wrapped = graphed(lambda x, generator: x + torch.rand(3, generator=generator))
    first, second = (wrapped(torch.zeros(3), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert list(wrapped.eager) == ["a value of class Generator"]


def test_calls_that_need_gradients_run_eagerly_and_have_them() -> None:
    wrapped = graphed(lambda x: x * 2)
    with torch.enable_grad():
        x = torch.ones(3, requires_grad=True)
        wrapped(x).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    assert list(wrapped.eager) == ["gradients are on"]


def test_autocast_hooks_and_forwards_put_on_an_instance_run_eagerly() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).requires_grad_(False)
    wrapped = graphed(model.forward, modules=(model,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert wrapped(torch.ones(2, 3)).dtype is torch.bfloat16
    seen: list[Any] = []
    handle = model[0].register_forward_hook(lambda *args: seen.append(args))
    wrapped(torch.ones(2, 3))
    handle.remove()
    own = model[0].forward
    model[0].forward = lambda x: (seen.append(x), own(x))[1]
    wrapped(torch.ones(2, 3))
    del model[0].forward
    assert len(seen) == 2
    assert set(wrapped.eager) == {"autocast", "a hook on Linear", "a forward of its own on Linear"}


def test_a_call_of_itself_while_capturing_does_not_nest() -> None:
    def recursive(x: Tensor, depth: int) -> Tensor:
        return x if depth == 0 else wrapped(x * 2, depth - 1) + 1

    wrapped = graphed(recursive)
    assert torch.equal(wrapped(torch.ones(2), 2), recursive(torch.ones(2), 2))
    assert "a call while capturing" in wrapped.eager


def test_an_attribute_that_the_call_sets_is_set() -> None:
    model = Model()

    def counting(x: Tensor) -> Tensor:
        model.seen = getattr(model, "seen", 0) + 1
        return x * model.seen

    wrapped = graphed(counting, modules=(model,))
    for calls in (1, 2, 3):
        assert torch.equal(wrapped(torch.ones(2)), torch.full((2,), float(calls)))
        assert model.seen == calls


def test_results_keep_views_of_each_other_and_never_of_the_graph() -> None:
    wrapped = graphed(lambda x: (both := x * 2, both[1:], both))
    first, part, again = wrapped(torch.ones(3))
    assert again is first
    first[1] = 7.0
    assert part[0] == 7.0
    assert torch.equal(wrapped(torch.ones(3))[0], torch.full((3,), 2.0))


def test_an_expanded_input_keeps_its_strides() -> None:
    wrapped = graphed(lambda x: x + torch.as_strided(x, x.shape, x.stride()))
    for value in (1.0, 2.0):
        x = torch.full((1, 3), value).expand(4, 3)
        assert torch.equal(wrapped(x), x * 2)
    assert wrapped.captures == 1


def test_constants_made_of_numbers_are_fresh_in_every_replay() -> None:
    wrapped = graphed(lambda x: torch.tensor([1.0, 2.0, 3.0]).add_(x))
    for _ in range(3):
        assert torch.equal(wrapped(torch.ones(3)), torch.tensor([2.0, 3.0, 4.0]))


def test_inference_mode_and_plain_calls_share_no_trouble() -> None:
    wrapped = graphed(lambda x: x * 2)
    with torch.inference_mode():
        assert wrapped(torch.ones(3)).is_inference()
    assert not wrapped(torch.ones(3)).is_inference()
    assert wrapped.captures == 1


def test_the_least_recently_used_capture_goes_first() -> None:
    wrapped = graphed(lambda x: x * 2, limit=2)
    for rows in (1, 2, 1, 3, 1):
        wrapped(torch.ones(rows))
    assert wrapped.captures == 3
    wrapped(torch.ones(2))
    assert wrapped.captures == 4


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        graphed(lambda x: x, limit=0)
