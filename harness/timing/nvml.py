"""What NVIDIA's management library (NVML, package ``nvidia-ml-py``) says about a GPU: clock, throttling, other processes.

Every query may be unsupported on some GPU or forbidden in some container; each failure is recorded by name and costs only
its own figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")

_SLOWDOWNS = (
    ("SwPowerCap", "the power limit is reached"),
    ("HwSlowdown", "the hardware slowed itself down (temperature or power supply)"),
    ("SyncBoost", "the clock follows a slower GPU of its sync boost group"),
    ("SwThermalSlowdown", "the temperature limit is reached"),
    ("HwThermalSlowdown", "the hardware's own temperature limit is reached"),
    ("HwPowerBrakeSlowdown", "the power supply asks for less power"),
)
"""Bits of ``nvmlClocksEventReasons`` that hold the clock down under load (idle and user-set clocks are no throttling)."""


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One reading; None where ``unavailable`` names the reason."""

    clock_hertz: float | None = None
    throttling: tuple[str, ...] = ()
    foreign_processes: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()


class Nvml:
    """One GPU seen through NVML, found by its UUID because ``CUDA_VISIBLE_DEVICES`` renumbers devices.

    ``library`` is the module ``pynvml``; ``uuid`` is as torch gives it, with or without the leading ``GPU-``.
    ``problem`` is None, or says why nothing can be read.
    """

    def __init__(self, library: ModuleType, uuid: str) -> None:
        self._library = library
        self._handle: object = None
        self.problem: str | None = None
        try:
            library.nvmlInit()
            self._handle = library.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except library.NVMLError as problem:
            self.problem = f"NVML: {problem}"

    def read(self) -> GpuReading:
        """Read everything once; takes about a millisecond."""
        if self.problem:
            return GpuReading(unavailable=(f"clock, throttling and other processes: {self.problem}",))
        library, handle, missing = self._library, self._handle, []

        def ask(what: str, query: Callable[[], T], otherwise: T) -> T:
            try:
                return query()
            except (library.NVMLError, AttributeError) as problem:  # an older nvidia-ml-py lacks newer functions
                missing.append(f"NVML {what}: {problem}")
                return otherwise

        return GpuReading(
            clock_hertz=ask("clock", lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM) * 1e6, None),
            throttling=ask("throttling", self._throttling, ()),
            foreign_processes=ask("processes", self._foreign_processes, ()),
            unavailable=tuple(missing),
        )

    def driver(self) -> str | None:
        """Version of the driver, or None where NVML cannot be used."""
        if self.problem:
            return None
        try:
            return str(self._library.nvmlSystemGetDriverVersion())
        except self._library.NVMLError:
            return None

    def _throttling(self) -> tuple[str, ...]:
        bits = self._library.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        return tuple(words for name, words in _SLOWDOWNS if bits & getattr(self._library, f"nvmlClocksEventReason{name}"))

    def _foreign_processes(self) -> tuple[str, ...]:
        """Processes computing on the GPU that are not this one.

        A container may number processes differently from the driver. A single process is then taken to be this one.
        """
        running = [process.pid for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)]
        own = os.getpid()
        if own not in running and len(running) <= 1:
            return ()
        return tuple(f"process {pid}" for pid in running if pid != own)


def open_nvml(uuid: str) -> Nvml | None:
    """The library, looking at the GPU of this UUID; None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return Nvml(pynvml, uuid)
