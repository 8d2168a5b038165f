"""Faults of the harness itself. A harness that compares a thing with itself holds everything.

Such a fault is noticed if the verdict on an honest policy is anything but "held", or if one of the fault's canaries,
mistakes that are known to be noticed, is not noticed any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import strategies as st

from .. import check as check_module
from .. import randomise as randomise_module
from .. import search as search_module
from .. import trial as trial_module
from ..case import Axis, Case, Example, Inputs
from ..numerics import Gap
from ..trial import Trial
from .fault import Fault, Patch, layered, patched, seeded

OBVIOUS = "M06 key value"
"""A mistake that nothing but a blind harness can miss."""


def _itself(honest: Any) -> Any:
    return SimpleNamespace(deepcopy=lambda model, memo: model)


def _no_copy(honest: Any) -> Any:
    return lambda self: self.original


def _expected_again(honest: Any) -> Any:
    return lambda self, model, inputs: self.run_original(inputs)


def _no_examples(honest: Any) -> Any:
    return lambda *args, **kwargs: search_module.Found()


def _swallowed(honest: Any) -> Any:
    def wrong(prop: Any, case: Any, replacer: Any, example: Any, found: Any) -> None:
        before = found.failure
        try:
            honest(prop, case, replacer, example, found)
        except Exception:
            found.failure = before
            found.replaced += 1

    return wrong


def _not_greater(honest: Any) -> Any:
    """``not error > tolerance`` is true of NaN; and infinity is taken for the same infinity on the other side."""

    def wrong(self: Gap, tolerance: float) -> bool:
        return not math.isfinite(self.error) or honest(self, tolerance)

    return wrong


def _valid(choose: Callable[[Any], Any]) -> Patch:
    """A patch of the positions that count."""

    def make(honest: Any) -> Any:
        def wrong(self: Trial) -> Inputs:
            inputs = honest(self)
            ids = next(one for one in inputs.kwargs.values() if isinstance(one, torch.Tensor) and one.dim() > 1)
            return Inputs(kwargs=inputs.kwargs, valid=choose(torch.ones(ids.shape[:2], dtype=torch.bool)))

        return wrong

    return Trial, "fresh_inputs", make


def _last(valid: Any) -> Any:
    valid[:, :-1] = False
    return valid


def _uncounted(honest: Any) -> Any:
    """Nothing is replaced, and nobody counts."""

    def wrong(self: Trial, model: Any) -> Any:
        return SimpleNamespace(model=model, replaced=(), left=(), revert=lambda: None)

    return wrong


def _zeros(honest: Any) -> Any:
    def wrong(owner: Any, name: str, parameter: Any, generator: Any) -> None:
        parameter.zero_()

    return wrong


def _library_defaults(honest: Any) -> Any:
    """Zero biases, unit gains, weights of 0.02: what a model is born with."""

    def wrong(owner: Any, name: str, parameter: Any, generator: Any) -> None:
        if name == "bias":
            parameter.zero_()
        elif parameter.dim() <= 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)

    return wrong


def _simplest_only(_: Any) -> Any:
    return property(lambda self: st.just(self.simplest))


def _simplest_each_time(_: Any) -> Any:
    def wrong(axes: tuple[Axis, ...], seed: int, most: int) -> list[Example]:
        return [Example({axis.name: axis.simplest for axis in axes}, 0)] * most

    return wrong


def _own(id: str, breaks: str, *patches: Patch, rows: str = "M25", source: str, canaries: tuple[str, ...] = ()) -> Fault:
    return seeded("harness", id, rows, source, breaks, patched(*patches), applies=layered, canaries=canaries)


HARNESS_OWN = (
    _own(
        "M25 aliased",
        "The reference is the model that is replaced.",
        (trial_module, "copy", _itself),
        rows="M25 F80",
        source="DeepSpeed #3285",
    ),
    _own(
        "M25 in place",
        "The model is replaced without having been copied, and nobody looks.",
        (Trial, "copy", _no_copy),
        rows="M25 F80",
        source="DeepSpeed #3285",
        canaries=(OBVIOUS,),
    ),
    _own(
        "M25 itself",
        "The original's outputs are compared with themselves.",
        (Trial, "run_replaced", _expected_again),
        source="diffusers' fused projection tests",
        canaries=(OBVIOUS,),
    ),
    _own(
        "M25 no examples",
        "No example is run.",
        (check_module, "search", _no_examples),
        source="DeepSpeed PR #2541",
    ),
    _own(
        "M25 swallowed",
        "What a property raises is swallowed.",
        (search_module, "judge", _swallowed),
        source="tritonbench's accuracy check",
        canaries=(OBVIOUS,),
    ),
    _own(
        "M25 any error",
        "Every error is within the tolerance.",
        (Gap, "within", lambda honest: lambda self, tolerance: True),
        source="tolerances raised until the test passes",
        canaries=(OBVIOUS,),
    ),
    _own(
        "M25 loose",
        "The tolerance is what half precision would need.",
        (Gap, "within", lambda honest: lambda self, tolerance: honest(self, 1e-2)),
        source="tolerances raised until the test passes",
        canaries=("F64 noise",),
    ),
    _own(
        "M25 not a number",
        "NaN and infinity count as agreement.",
        (Gap, "within", _not_greater),
        source="code read in comparison helpers",
        canaries=("F67 not a number",),
    ),
    _own(
        "M25 nowhere",
        "No position counts.",
        _valid(torch.zeros_like),
        source="DeepSpeed #3511",
    ),
    _own(
        "M25 last only",
        "Only the last position counts, as when generated text is compared.",
        _valid(_last),
        rows="M25 F13",
        source="DeepSpeed #3511",
        canaries=("F13 but the last",),
    ),
    _own(
        "M25 uncounted",
        "Nothing is replaced, and nobody counts.",
        (Trial, "replace", _uncounted),
        rows="M25 F82 F11",
        source="DeepSpeed PR #2541",
    ),
    _own(
        "M25 dead",
        "All weights are zero: every function of them is the same.",
        (randomise_module, "_fill", _zeros),
        source="DeepSpeed's tests of randomly initialised layers",
    ),
    _own(
        "M25 born so",
        "Models keep the weights they are born with, without biases and gains.",
        (randomise_module, "_fill", _library_defaults),
        source="the field's toy layers",
        canaries=("F07 gain",),
    ),
    _own(
        "M25 simplest",
        "Every example is the simplest one.",
        (Case, "strategy", _simplest_only),
        (search_module, "covering_examples", _simplest_each_time),
        source="tests with one mask and one shape",
        canaries=("F58 batch stride",),
    ),
)
"""A harness that is wrong."""
