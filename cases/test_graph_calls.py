"""A call through captured graphs gives what the function itself gives, whatever comes before it.

The state machine looks for sequences of calls that break this; wrappers with the field's known faults (FAULTS F73 to F78,
M22) show that it finds what it is for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from policies.fused import graphs as graphs_module
from policies.fused.graphs import Capture, Graphed

from .graph_calls import DEPTH, DEVICES, Calls


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("device", DEVICES)
def test_any_sequence_of_calls_and_changes_gives_what_the_function_gives(device: str) -> None:
    run_state_machine_as_test(type("CallsThere", (Calls,), {"device": device}), settings=DEPTH)


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

    def hooked(self) -> str | None:
        return None


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
            self.function = self.captured = lambda *args, **kwargs: None
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
