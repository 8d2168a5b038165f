"""The interface through which everything else sees a device, and the conditions under which it was timed.

Requirements this file must meet:

* One small class: a clock for a callable, a snapshot of conditions, the memory peak of a call. Nothing else in the
  timing room may ask which device it is on.
* What cannot be measured is said (``unavailable``), never guessed and never silently left out.
* ``end_to_end`` is the time a caller waits, launch and synchronisation included; ``device`` is the time the device was
  busy with the call. On a CPU they are the same.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil

Call = Callable[[], object]
Clock = Literal["end_to_end", "device"]

_CLOCK_CHANGE = 0.05
_OTHER_LOAD_CORES = 0.2
_COUNTER_SECONDS = 0.5
"""Below this, processor-time counters that advance in steps of 10 ms say nothing about load."""


class DeviceUnavailable(ValueError):
    """The device asked for is not there or cannot be used; one line that says why."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Snapshot of what can disturb a timing. None where it could not be read; the device's ``unavailable`` says why."""

    at: float
    """Seconds on the device object's own clock (``Device.now``)."""
    clock_hertz: float | None = None
    throttling: tuple[str, ...] = ()
    """Reasons for which the clock is being held down at this moment."""
    foreign_processes: tuple[str, ...] = ()
    """Other processes that use the accelerator."""
    busy_core_seconds: float | None = None
    """Processor time spent by the whole machine since it started."""
    own_core_seconds: float | None = None
    """Processor time spent by this process since it started."""


class Device(ABC):
    """A place where calls are timed."""

    name: str
    """For people: ``cpu (8 threads)``, ``cuda:0 (NVIDIA H100)``."""
    kind: Literal["cpu", "cuda"]
    unavailable: tuple[str, ...]
    """What cannot be measured or pinned here, one sentence each."""
    clocks: tuple[Clock, ...] = ("end_to_end",)
    """The clocks that tell different times here."""
    graphs: bool = False
    """Whether calls can be captured as graphs here."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until everything asked of the device so far is done."""

    @abstractmethod
    def seconds(self, call: Call, calls: int, clock: Clock = "end_to_end") -> float:
        """Mean seconds a call over ``calls`` successive calls; returns with the device idle."""

    @abstractmethod
    def conditions(self) -> Conditions:
        """Read the clocks, the load and the rest, now."""

    @abstractmethod
    def peak_bytes(self, call: Call) -> int | None:
        """Most memory that one call held above what was held before it; None where that cannot be measured."""

    def free_bytes(self) -> int:
        """Memory that a program may still take: the host's, where the device has none of its own."""
        return int(psutil.virtual_memory().available)

    def captured(self, call: Call) -> Call:
        """A replay of ``call`` as a graph, which returns what the call returned. Asked only where the device has ``graphs``.

        Inputs, outputs and weights must stay where they are: timing a replay is timing the call without its launches.
        Raises whatever torch raises when the call cannot be captured.
        """
        raise NotImplementedError(f"{self.name} has no graphs")

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Hold the device in the state in which it is to be timed; give back the old one after, as far as that is possible."""
        yield

    def now(self) -> float:
        """Monotonic seconds, for budgets."""
        return time.perf_counter()

    def tick_seconds(self) -> float:
        """Smallest step of the clock behind ``seconds``."""
        return time.get_clock_info("perf_counter").resolution


def disturbances(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """What happened between two snapshots that may have disturbed a timing, each with what to do about it."""
    found = [_clock_change(before, after), _other_load(before, after)]
    reasons = dict.fromkeys((*before.throttling, *after.throttling))
    found += [f"throttling: {reason}; improve cooling, raise the power limit, or lock a lower clock" for reason in reasons]
    foreign = dict.fromkeys((*before.foreign_processes, *after.foreign_processes))
    if foreign:
        found.append(f"other processes on the device: {', '.join(foreign)}; stop them or use another device")
    return tuple(warning for warning in found if warning)


def _clock_change(before: Conditions, after: Conditions) -> str | None:
    if not before.clock_hertz or not after.clock_hertz:
        return None
    change = after.clock_hertz / before.clock_hertz - 1
    if abs(change) < _CLOCK_CHANGE:
        return None
    return (
        f"clock: {before.clock_hertz / 1e6:.0f} MHz before, {after.clock_hertz / 1e6:.0f} MHz after; "
        "lock the clock frequency or warm up longer"
    )


def _other_load(before: Conditions, after: Conditions) -> str | None:
    start, end = _others_core_seconds(before), _others_core_seconds(after)
    elapsed = after.at - before.at
    if start is None or end is None or elapsed < _COUNTER_SECONDS:
        return None
    others = (end - start) / elapsed
    if others < _OTHER_LOAD_CORES:
        return None
    return f"other load: other processes kept {others:.1f} cores busy; stop them, or time on cores they do not use"


def _others_core_seconds(conditions: Conditions) -> float | None:
    if conditions.busy_core_seconds is None or conditions.own_core_seconds is None:
        return None
    return conditions.busy_core_seconds - conditions.own_core_seconds
