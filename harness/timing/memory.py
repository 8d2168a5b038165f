"""What a process holds while something runs: all resident memory, and the anonymous part of it.

Pages of a mapped file count as resident, though the system may drop them at any time and read them again; anonymous
pages are the process's own and stay. Both are watched, because only both together say what a way of loading costs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

SECONDS_BETWEEN = 0.001
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Held(NamedTuple):
    """Bytes."""

    resident: int
    anonymous: int


def held() -> Held:
    """What this process holds now."""
    info = psutil.Process().memory_info()
    return Held(info.rss, info.rss - info.shared)


class MemoryWatch:
    """``with MemoryWatch() as watch:`` leaves ``watch.seconds`` and ``watch.peak``.

    A thread looks every millisecond. Where the kernel keeps the high-water mark of resident memory, that one is exact.
    """

    def __init__(self) -> None:
        self.peak = Held(0, 0)
        self.seconds = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._exact = reset_peak()
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        self._note(held())
        if self._exact:
            self._note(Held(peak(), 0))

    def _look(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN):
            self._note(held())

    def _note(self, now: Held) -> None:
        self.peak = Held(max(self.peak.resident, now.resident), max(self.peak.anonymous, now.anonymous))


def can_reset_peak() -> bool:
    """Whether the system lets a process reset its high-water mark."""
    return os.access(_RESET, os.W_OK)


def reset_peak() -> bool:
    """Let ``peak`` count from now. False where the system does not."""
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # resets the high-water mark: proc(5), /proc/pid/clear_refs
        return True
    return False


def peak() -> int:
    """The most that was resident since the reset, in bytes; 0 where the kernel does not say."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
