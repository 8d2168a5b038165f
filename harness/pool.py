"""Processes that work for this one and are gone when it has no use for them any more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import as_completed
from dataclasses import dataclass
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


def in_parallel(
    pool: ProcessPool, function: Callable[[T], R], tasks: Iterable[T], *, seconds: float
) -> Iterator[tuple[T, R | NoResult]]:
    """Each task with ``function(task)``, as they end. One that raises, dies or takes longer than ``seconds`` costs its own
    result, not the rest."""
    futures = {pool.schedule(function, args=[task], timeout=seconds): task for task in tasks}
    for future in as_completed(futures):
        result: R | NoResult
        try:
            result = future.result()
        except FutureTimeout:
            result = NoResult(f"not done within {seconds:.0f} s")
        except ProcessExpired as death:
            result = NoResult(f"its process died (exit code {death.exitcode})")
        except Exception as problem:
            result = NoResult(f"{type(problem).__name__}: {' '.join(str(problem).split())}")
        yield futures[future], result
