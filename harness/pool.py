"""Processes that work for this one and are gone when it has no use for them any more."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import as_completed
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class NoResult:
    """What there is of a task that gave nothing back: one line that says why."""

    reason: str


@contextlib.contextmanager
def stopping(pool: ProcessPool) -> Iterator[ProcessPool]:
    """``pool``, stopped at the end whatever it was doing. By itself it would first do all that was scheduled: whoever
    interrupts a run would wait for the rest of it."""
    try:
        yield pool
    finally:
        pool.stop()
        pool.join()


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes and threads begun inside never see an interrupt: it is for whoever began them, who stops them. A process that
    is still importing would answer it with a traceback."""
    resource_tracker.ensure_running()  # which lets interrupts in again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_parallel(
    pool: ProcessPool, function: Callable[[T], R], tasks: Iterable[T], *, seconds: float
) -> Iterator[tuple[T, R | NoResult]]:
    """Each task with ``function(task)``, as they end. One that raises, dies or takes longer than ``seconds`` costs its own
    result, not the rest."""
    with deaf_to_interrupts():  # the pool begins its threads with the first task, and they its processes
        futures = {pool.schedule(function, args=[task], timeout=seconds): task for task in tasks}
    for future in as_completed(futures):
        result: R | NoResult
        try:
            result = future.result()
        except FutureTimeout:
            result = NoResult(f"not done within {seconds:.0f} s")
        except ProcessExpired as death:
            result = NoResult(f"its process died (exit code {death.exitcode})")
        except (Exception, SystemExit) as problem:
            result = NoResult(f"{type(problem).__name__}: {' '.join(str(problem).split())}")
        yield futures[future], result
