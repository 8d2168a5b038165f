"""Honest variants: other ways to compute the same function with the same care.

The multiples are calibrated on them. Each is a context in which a model is called; what is called is the original or
its replacement. None of them changes what is computed, only in which order sums are taken and which kernel takes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from policies import replace_module

from ..case import Case, Example
from ..trial import fused_states


@dataclass(frozen=True)
class Variant:
    """``example`` maps an example to the one whose original is taken, or to None where the variant does not exist;
    ``prepare`` turns that original into the model to call; ``around`` is entered while it is called."""

    name: str
    prepare: Callable[[nn.Module], nn.Module]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    example: Callable[[Case, Example], Example | None] = lambda case, example: example


def _same(model: nn.Module) -> nn.Module:
    return model


def _replaced(model: nn.Module) -> nn.Module:
    replace_module(model)
    return model


def _unpacked(model: nn.Module) -> nn.Module:
    """Replaced, with each projection on its own."""
    replace_module(model)
    for state in fused_states(model):
        if getattr(state, "core", None) is not None:
            state.core.attention.unpack()
    return model


def _other_attention(case: Case, example: Example) -> Example | None:
    """Eager attention where the example has sdpa, and the other way round. A bool mask means something to sdpa only."""
    axis = next((axis for axis in case.axes if axis.name == "attention" and len(axis.values) > 1), None)
    if axis is None or example.values.get("mask") == "4d bool":
        return None
    return example.with_value("attention", next(value for value in axis.values if value != example["attention"]))


class _Reversed(TorchFunctionMode):
    """Every projection sums over its inputs from the last to the first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, *rest = args
            return func(x.flip(-1), weight.flip(-1), *rest, **kwargs)
        return func(*args, **kwargs)


VARIANTS = (
    Variant("replaced", _replaced),
    Variant("replaced, projections apart", _unpacked),
    Variant("replaced, sums reversed", _replaced, _Reversed),
    Variant("original, other attention", _same, example=_other_attention),
    Variant("original, sums reversed", _same, _Reversed),
)
"""Another thread count is not among them: tensors of this size are never split between threads."""
