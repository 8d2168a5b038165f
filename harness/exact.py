"""Exact mode: run a model in float64 although it asks for less.

Two implementations of one function agree to about 1e-15 in float64, so that one tolerance serves every architecture and
a wrong epsilon, a dropped bias or a shifted position stands out by orders of magnitude. ``model.double()`` is not enough
for it: models cast to float32 by name (``.float()``, ``softmax(dtype=torch.float32)``, masks made of float32's smallest
number), which rounds or overflows. A ``TorchFunctionMode`` turns each such request into float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LOWER = frozenset({torch.float32, torch.float16, torch.bfloat16})
_SHORTHANDS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


class _Widen(TorchFunctionMode):
    """Replaces every lower float dtype in a call's arguments by float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SHORTHANDS:
            return Tensor.double(args[0])
        for one in args:  # a plain loop: this runs for every call of torch in every example
            if type(one) is torch.dtype and one in _LOWER:
                args = tuple(torch.float64 if type(each) is torch.dtype and each in _LOWER else each for each in args)
                break
        if kwargs:
            dtype = kwargs.get("dtype")
            if dtype is not None and dtype in _LOWER:
                kwargs = {**kwargs, "dtype": torch.float64}
            return func(*args, **kwargs)
        return func(*args)


unwatched = torch._C.DisableTorchFunction
"""Inside, calls are not looked at: for what asks for no dtype, and is made of many (copying a model, filling it)."""


@contextlib.contextmanager
def exact_mode() -> Iterator[None]:
    """Inside, every float computation is float64, gradients are off, and new tensors are float64 by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _Widen():
            yield
    finally:
        torch.set_default_dtype(before)
