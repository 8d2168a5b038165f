"""Measuring the speed of light in the run itself: the best GEMM rate by dtype and the best memory rate by working set.

Requirements this file must meet:

* A ceiling is the best that several plain library calls reach, because a call that exceeds it voids its own row.
* Memory has no single ceiling on a CPU: data that fit a cache stream several times faster than data that do not. So the
  rate is measured for several working sets, and a call is held against the one that fits its own bytes.
* Reading alone can be faster than copying (a copy also fetches the lines that it overwrites), and a decode step only reads.
  So the ceiling is the better of both.
* All of it takes about two seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from .devices import Call, Device, disturbances
from .light import SpeedOfLight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HALVES = (torch.bfloat16, torch.float16)
_GEMM_SIZES = (256, 512, 1024, 2048, 4096, 8192)
_WORKING_SETS = {"cpu": tuple(2**power * 2**20 for power in (1, 3, 5, 7, 9)), "cuda": (2**28, 2**30)}
_MEMORY_SHARE = 0.3
_TIMED_CALLS = 3


def measure_ceilings(device: Device, *, dtypes: Sequence[torch.dtype] = DTYPES, budget_seconds: float = 2.0) -> SpeedOfLight:
    """Measure GEMM and memory ceilings on ``device`` within about ``budget_seconds``.

    A dtype that the device cannot multiply is left out.
    """
    sets = _WORKING_SETS[device.kind]
    before = device.conditions()
    streams = _stream_rates(device, sets, budget_seconds * _MEMORY_SHARE)
    share = budget_seconds * (1 - _MEMORY_SHARE) / len(dtypes)
    gemms = {str(dtype).removeprefix("torch."): _gemm_rate(device, dtype, share) for dtype in dtypes}
    return SpeedOfLight(
        device=device.name,
        gemm_flops={dtype: rate for dtype, rate in gemms.items() if rate},
        stream_bytes=streams,
        warnings=disturbances(before, device.conditions()),
    )


def _best_seconds(device: Device, call: Call, until: float) -> float:
    """Shortest of at least ``_TIMED_CALLS`` calls, after one to warm up; more of them while time is left."""
    device.seconds(call, 1, "device")
    best, timed = math.inf, 0
    while timed < _TIMED_CALLS or device.now() < until:
        best = min(best, device.seconds(call, 1, "device"))
        timed += 1
    return best


def _stream_rates(device: Device, sets: Sequence[int], share: float) -> dict[int, float]:
    """Better of copying within and reading through each working set of ``sets``, bytes/s."""
    floats = torch.ones(max(sets) // 4, device=device.kind)
    rates: dict[int, float] = {}
    reached = 0.0
    for size in sorted(sets, reverse=True):
        whole = floats[: size // 4]
        target, source = whole.chunk(2)
        each = share / len(sets) / 2
        copying = _best_seconds(device, partial(target.copy_, source), device.now() + each)
        reading = _best_seconds(device, whole.sum, device.now() + each)
        # A smaller set is nowhere slower than a larger one; where it seems so, starting the threads was measured.
        rates[size] = reached = max(reached, size / min(copying, reading))
    return dict(sorted(rates.items()))


def _gemm_rate(device: Device, dtype: torch.dtype, share: float) -> float | None:
    """Best rate over square sizes and library entries, FLOP/s; None where no entry can multiply ``dtype``.

    An entry goes on to the next size while that fits the time share and while it has reached half of the best: some dtypes
    have a fast entry and one that is a thousand times slower.
    """
    until = device.now() + share
    entries = [_linear, _mm]
    if device.kind == "cpu":
        entries += [_onednn, *([_widened] if dtype in _HALVES else [])]
    rates = dict.fromkeys(entries, math.inf)
    best = 0.0
    for size in _GEMM_SIZES:
        operations = 2 * size**3
        for entry, rate in list(rates.items()):
            if rate < best / 2 or device.now() + (_TIMED_CALLS + 1) * operations / rate > until:
                del rates[entry]
                continue
            try:
                product = entry(*torch.randn(2, size, size, device=device.kind).to(dtype))
                seconds = _best_seconds(device, product, device.now() + share / 12)
            except (RuntimeError, NotImplementedError):  # torch has no kernel of this entry for the dtype
                del rates[entry]
                continue
            rates[entry] = operations / seconds
            best = max(best, rates[entry])
    return best or None


def _linear(left: torch.Tensor, right: torch.Tensor) -> Call:
    return lambda: torch.nn.functional.linear(left, right)


def _mm(left: torch.Tensor, right: torch.Tensor) -> Call:
    return lambda: torch.mm(left, right)


def _widened(left: torch.Tensor, right: torch.Tensor) -> Call:
    """In float32, as a processor without half precision multiplies it fastest."""
    return lambda: torch.mm(left.float(), right.float()).to(left.dtype)


def _onednn(left: torch.Tensor, right: torch.Tensor) -> Call:
    """oneDNN on its own layout, which is what prepacked linear layers reach and plain entries may not."""
    blocked = left.to_mkldnn()
    return lambda: torch.ops.aten.mkldnn_linear(blocked, right, None)
