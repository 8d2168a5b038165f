"""A layer's matrix products alone: what is left of a call when everything else in it is left out.

No layer can be faster than its own products through the operators it uses, so their share of its time says how much there
is still to be had.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..timing.devices import Device

PRODUCTS = ("aten::linear", "aten::addmm", "aten::mm", "mkldnn::_linear_pointwise")
"""Products with weights. Those of attention are not counted: another order of the same work may need none of them."""
ROUNDS = 12
LEAST_SECONDS = 0.5e-3

Made = tuple[Any, tuple[Any, ...], dict[str, Any]]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name().partition(".")[0] in PRODUCTS:
            self.made.append((func, args, kwargs))
        return func(*args, **kwargs)


def products_of(call: Callable[[], Any]) -> Callable[[], None] | None:
    """What ``call`` multiplies by weights, to be done again on the same operands; None where there is nothing of the kind."""
    with _Recorder() as recorder:
        call()

    def again() -> None:
        for func, args, kwargs in recorder.made:
            func(*args, **kwargs)

    return again if recorder.made else None


def products_fraction(call: Callable[[], Any], device: Device) -> float | None:
    """Time of ``call``'s own products over the time of ``call``: medians of rounds in which both take turns."""
    products = products_of(call)
    if products is None:
        return None
    with torch.no_grad():
        calls = max(1, round(LEAST_SECONDS / max(device.seconds(call, 1, "end_to_end"), device.tick_seconds())))
        rounds = [[device.seconds(one, calls, "end_to_end") for one in (products, call)] for _ in range(ROUNDS)]
    alone, whole = (median(times) for times in zip(*rounds))
    return alone / whole
