"""A call through captured graphs gives what the function itself gives, whatever comes before it.

The state machine looks for sequences of calls that break this; wrappers with the field's known faults (FAULTS F73 to F78,
M22) show that it finds what it is for.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from harness.faults import graphs as faults
from policies.fused.graphs import Graphed

from .graph_calls import DEPTH, DEVICES, Calls

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("device", DEVICES)
def test_any_sequence_of_calls_and_changes_gives_what_the_function_gives(device: str) -> None:
    run_state_machine_as_test(type("CallsThere", (Calls,), {"device": device}), settings=DEPTH)


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

    def _make(self, key: Any, leaves: Any, spec: Any) -> Any:
        try:
            return super()._make(key, leaves, spec)
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
    faults.OneGraph,
    faults.ShallowRefresh,
    faults.InputsNotCopied,
    faults.OutputsNotCopied,
    faults.TwoBuffers,
    faults.StaleWeights,
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
