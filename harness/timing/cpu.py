"""The CPU as a device: threads pinned and recorded, freed memory kept, other load counted, resident memory at its peak.

Every core that this process may use is taken as given (a scheduler or ``taskset`` decided that); what is pinned is torch's
number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import psutil
import torch

from policies.fused.packed import trim

from ..pool import cores
from . import memory
from .devices import Call, Clock, Conditions, Device, DeviceUnavailable


class CpuDevice(Device):
    """The cores of this machine, timed by the monotonic performance counter.

    ``threads`` is torch's intra-op thread count while ``pinned``, by default as it is now. Raises ``DeviceUnavailable`` for
    less than one.
    """

    kind = "cpu"

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = torch.get_num_threads() if threads is None else threads
        if self.threads < 1:
            raise DeviceUnavailable(f"threads must be at least 1, got {self.threads}")
        self._process = psutil.Process()
        self.name = f"cpu ({self.threads} thread{'s' if self.threads > 1 else ''})"
        self.unavailable = tuple(self._cannot())

    def _cannot(self) -> Iterator[str]:
        yield f"threads are not bound to cores: the scheduler may move them among {cores()}"
        if _frequency() is None:
            yield "the system reports no clock frequency"
        if not memory.can_keep_freed():
            yield "the allocator may give memory back to the system after a call, which the next call pays for"
        if not memory.can_reset_peak():
            yield "peak memory of a call cannot be measured: the system does not let a process reset its high-water mark"

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Set torch's threads, which are given back at the end, and have freed memory kept, which stays so."""
        memory.keep_freed()
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
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
        """Clock frequency, and processor time of the machine and of this process."""
        machine, own = psutil.cpu_times(), self._process.cpu_times()
        # Linux counts guests in ``user`` already, so they are not added.
        busy = sum(getattr(machine, part, 0.0) for part in ("user", "nice", "system", "irq", "softirq", "steal"))
        return Conditions(
            at=self.now(),
            clock_hertz=_frequency(),
            busy_core_seconds=busy,
            own_core_seconds=own.user + own.system,
        )

    def peak_bytes(self, call: Call) -> int | None:
        """Rise of the process's resident memory during one call, in bytes, kernels' scratch memory included.

        Memory that the allocator kept from earlier calls is handed back first. Linux only, and exact to some hundred KiB,
        because the kernel counts pages in batches.
        """
        trim()
        if not memory.reset_peak() or not (before := memory.peak()):
            return None
        call()
        return max(0, memory.peak() - before)


def _frequency() -> float | None:
    """Current clock in hertz, or None; virtual machines and some kernels do not say."""
    try:
        frequency = psutil.cpu_freq()
    except (NotImplementedError, OSError):
        return None
    return frequency.current * 1e6 if frequency and frequency.current else None
