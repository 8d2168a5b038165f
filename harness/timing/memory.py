"""What a process holds while something runs, all resident memory and the anonymous part of it; and what its allocator keeps
between calls.

Pages of a mapped file count as resident, though the system may drop them at any time and read them again; anonymous
pages are the process's own and stay. Both are watched, because only both together say what a way of loading costs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

SECONDS_BETWEEN = 0.001
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_MOST_KEPT = 2**31 - 1
_LARGEST_KEPT = 32 * 2**20
"""Bytes; larger pieces glibc always asks the system for."""
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


def can_keep_freed() -> bool:
    """Whether the allocator lets itself be told to keep what is freed: glibc's does."""
    return _mallopt() is not None


def keep_freed() -> None:
    """Let the allocator keep what is freed for whoever asks next, from now on and for as long as the process lives.

    glibc gives the system back what is free at the end of its heap, above a threshold that follows the largest piece freed so
    far. A layer that is called by itself frees all that it made at its end, so that each of its calls may pay for the same
    pages again: up to 840 faults and a quarter of the time of a step of decoding, for one side more than for the other. In a
    whole model, where caches live on, there are none.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT)


def _mallopt() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
