"""How fast this device is, roughly: for estimates of what a workload will take, never for a verdict."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F  # noqa: N812

from ..timing.devices import Call, Device

ROWS, WIDTH = 256, 1024
CHANNELS, SIDE = 320, 32
TIMED = 3
EFFICIENCY = {"layer": 0.6, "image": 0.35}
"""What a layer at work reaches of one of its products alone, and a UNet of one of its convolutions. Seen on one server."""


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
        product = 2 * ROWS * WIDTH**2 / _seconds(device, lambda: F.linear(x, weight))
        convolution = 18 * (CHANNELS * SIDE) ** 2 / _seconds(device, lambda: F.conv2d(image, kernel, padding=1))
    except RuntimeError:  # torch has no kernel for the dtype here
        return
    yield "layer", EFFICIENCY["layer"] * product
    yield "image", EFFICIENCY["image"] * convolution


def _seconds(device: Device, call: Call) -> float:
    device.seconds(call, 1)
    return min(device.seconds(call, 1) for _ in range(TIMED))
