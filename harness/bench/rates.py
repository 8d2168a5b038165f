"""How fast this device is, roughly: for estimates of what a workload will take, never for a verdict."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F  # noqa: N812

from ..timing.devices import Call, Device

ROWS, WIDTH = 256, 1024
CHANNELS, SIDE = 320, 32
TIMED = 3
EFFICIENCY = 0.8
"""A layer at work reaches less than one of its products alone."""


def measure_rates(device: Device, dtypes: tuple[str, ...]) -> dict[str, float]:
    """FLOP/s by kind and dtype, as in ``layer float32`` and ``image bfloat16``: a product with weights, a convolution.

    Takes a fraction of a second. A dtype that the device cannot compute in is left out.
    """
    return {f"{kind} {dtype}": rate for dtype in dtypes for kind, rate in _measured(device, getattr(torch, dtype))}


def _measured(device: Device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    x, weight = torch.ones(ROWS, WIDTH), torch.ones(WIDTH, WIDTH)
    image, kernel = torch.ones(1, CHANNELS, SIDE, SIDE), torch.ones(CHANNELS, CHANNELS, 3, 3)
    x, weight, image, kernel = (one.to(device=device.kind, dtype=dtype) for one in (x, weight, image, kernel))
    try:
        yield "layer", 2 * ROWS * WIDTH**2 * _calls_a_second(device, lambda: F.linear(x, weight))
        yield "image", 18 * (CHANNELS * SIDE) ** 2 * _calls_a_second(device, lambda: F.conv2d(image, kernel, padding=1))
    except RuntimeError:  # torch has no kernel for the dtype here
        return


def _calls_a_second(device: Device, call: Call) -> float:
    device.seconds(call, 1)
    return EFFICIENCY / min(device.seconds(call, 1) for _ in range(TIMED))
