"""Tensors in the arguments and outputs of a call, however deep they lie in dicts, tuples and lists.

Caches are not entered, unlike by torch's own trees, in which some process may have registered them: a call is to change
them, and nothing else that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from .case import Inputs

T = TypeVar("T")


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` (of a call, or ``Inputs``) with ``change`` applied to every tensor of the call."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Inputs):
        return Inputs(kwargs=mapped(value.kwargs, change), valid=value.valid)
    if isinstance(value, dict):
        return {key: mapped(one, change) for key, one in value.items()}
    return type(value)(mapped(one, change) for one in value) if isinstance(value, tuple | list) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for one in value.values() for tensor in tensors_in(one))
    elif isinstance(value, tuple | list):
        yield from (tensor for one in value for tensor in tensors_in(one))


def own_lists(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The lists among a call's arguments anew: a UNet takes residuals out of the one that it is given."""
    return {name: list(value) for name, value in kwargs.items() if isinstance(value, list)}


def cast(value: T, dtype: torch.dtype) -> T:
    """``value`` with each float tensor as ``dtype``; an additive mask gets the smallest number of it."""

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        lowest = tensor == torch.finfo(tensor.dtype).min
        if tensor.dtype == torch.float64:
            lowest |= tensor == torch.finfo(torch.float32).min  # a mask of float32 that was made in exact mode
        return tensor.to(dtype).masked_fill(lowest, torch.finfo(dtype).min)

    result: T = mapped(value, change)
    return result
