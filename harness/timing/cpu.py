"""The CPU as a device: threads and affinity pinned and recorded, other load counted, resident memory at its peak.

Every core that this process may use is taken as given (a scheduler or ``taskset`` decided that); what is pinned is torch's
number of threads and, where cores are named, every thread's affinity.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

import psutil
import torch

from harness.timing.devices import Call, Clock, Conditions, Device, DeviceUnavailable

_PROCESS = Path("/proc/self")


class CpuDevice(Device):
    """The cores of this machine, timed by the monotonic performance counter.

    ``threads`` is torch's intra-op thread count while ``pinned``; ``cores`` are the logical processors that all threads
    of this process are bound to while ``pinned``. By default both stay as they are.
    Raises ``DeviceUnavailable`` for threads or cores that the machine does not have.
    """

    kind = "cpu"

    def __init__(self, *, threads: int | None = None, cores: Sequence[int] | None = None) -> None:
        self.threads = torch.get_num_threads() if threads is None else threads
        if self.threads < 1:
            raise DeviceUnavailable(f"threads must be at least 1, got {self.threads}")
        self._process = psutil.Process()
        self.allowed_cores = _allowed_cores()
        self.cores = None if cores is None else tuple(cores)
        if self.cores is not None and not set(self.cores) <= set(self.allowed_cores):
            raise DeviceUnavailable(f"cores must be among {self.allowed_cores}, got {self.cores}")
        self.name = f"cpu ({self.threads} thread{'s' if self.threads > 1 else ''})"
        self.unavailable = tuple(self._cannot())

    def _cannot(self) -> Iterator[str]:
        if not hasattr(os, "sched_setaffinity"):
            yield "core affinity can be neither read nor set on this system"
        elif self.cores is None:
            yield "threads are not bound to cores: the scheduler may move them among " + _ranges(self.allowed_cores)
        if _frequency() is None:
            yield "the system reports no clock frequency"
        if _temperature() is None:
            yield "the system reports no processor temperature"
        if not _can_reset_peak():
            yield "peak memory of a call cannot be measured: the system does not let a process reset its high-water mark"

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Set torch's threads and the cores asked for; both are given back at the end."""
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with _bound_to(self._process, self.cores):
                yield
        finally:
            torch.set_num_threads(threads_before)

    def synchronise(self) -> None:
        """Nothing to wait for: calls return when they are done."""

    def seconds(self, call: Call, calls: int, clock: Clock = "end_to_end") -> float:
        """Mean seconds a call; both clocks are the same here."""
        start = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        return (time.perf_counter() - start) / calls

    def conditions(self) -> Conditions:
        """Clock frequency, temperature, and processor time of the machine and of this process."""
        machine, own = psutil.cpu_times(), self._process.cpu_times()
        # Linux counts guests in ``user`` already, so they are not added.
        busy = sum(getattr(machine, part, 0.0) for part in ("user", "nice", "system", "irq", "softirq", "steal"))
        return Conditions(
            at=self.now(),
            clock_hertz=_frequency(),
            temperature_celsius=_temperature(),
            busy_core_seconds=busy,
            own_core_seconds=own.user + own.system,
            unavailable=self.unavailable,
        )

    def peak_bytes(self, call: Call) -> int | None:
        """Rise of the process's resident memory during one call, in bytes, kernels' scratch memory included.

        Memory that the allocator kept from earlier calls is handed back first. Linux only, and exact to some hundred KiB,
        because the kernel counts pages in batches.
        """
        if not _can_reset_peak():
            return None
        _trim_heap()
        (_PROCESS / "clear_refs").write_text("5")  # "5" resets the high-water mark: proc(5), /proc/pid/clear_refs
        before = _high_water()
        call()
        return max(0, _high_water() - before)


def _allowed_cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _ranges(cores: Sequence[int]) -> str:
    return f"{len(cores)} cores ({cores[0]} to {cores[-1]})"


@contextmanager
def _bound_to(process: psutil.Process, cores: Sequence[int] | None) -> Iterator[None]:
    """Bind every thread of the process: worker threads that exist already keep their own affinity otherwise."""
    if cores is None:
        yield
        return
    before = {}
    for thread in process.threads():
        with suppress(ProcessLookupError):  # a thread may end between being listed and being bound
            before[thread.id] = os.sched_getaffinity(thread.id)
            os.sched_setaffinity(thread.id, cores)
    try:
        yield
    finally:
        for thread_id, allowed in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread_id, allowed)


def _frequency() -> float | None:
    """Current clock in hertz, or None; virtual machines and some kernels do not say."""
    try:
        frequency = psutil.cpu_freq()
    except (NotImplementedError, OSError):
        return None
    return frequency.current * 1e6 if frequency and frequency.current else None


def _temperature() -> float | None:
    readings = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for chip in ("coretemp", "k10temp", "cpu_thermal"):
        if readings.get(chip):
            return float(max(reading.current for reading in readings[chip]))
    return None


def _can_reset_peak() -> bool:
    return os.access(_PROCESS / "clear_refs", os.W_OK)


def _high_water() -> int:
    """Peak resident memory of this process in bytes since the last reset."""
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_PROCESS / 'status'} has no VmHWM line")


def _trim_heap() -> None:
    """Give freed heap memory back to the system, so that a call's own use shows; only glibc has this call."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
