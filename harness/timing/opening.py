"""Devices by name."""

from __future__ import annotations

from .cpu import CpuDevice
from .cuda import open_cuda
from .devices import Device, DeviceUnavailable


def open_device(kind: str) -> Device:
    """The CPU, with as many threads as torch has now, or the current CUDA device.

    Raises ``DeviceUnavailable`` for a device that is not there or not known.
    """
    if kind == "cpu":
        return CpuDevice()
    if kind == "cuda":
        return open_cuda()
    raise DeviceUnavailable(f"device must be 'cpu' or 'cuda', got {kind!r}")
