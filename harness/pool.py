"""Processes that work for this one and are gone when it has no use for them any more."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import as_completed
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

T = TypeVar("T")
R = TypeVar("R")


class Lost(Exception):
    """A task that gave no result. Says why, in one line that goes on from what was done: "... ended its process"."""


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


def run_one(
    pool: ProcessPool, function: Callable[..., R], *args: Any, seconds: float, raises: tuple[type[Exception], ...] = ()
) -> R:
    """The result of ``function(*args)``. Raises one of ``raises`` where the function did, and ``Lost`` where it gave no result
    for any other reason, among them that it took longer than ``seconds``."""
    with deaf_to_interrupts():  # a pool begins its threads with the first task, and they its processes
        future = pool.schedule(_staying, args=[function, *args], timeout=seconds)
    return _result(future, seconds, raises)


def in_parallel(
    pool: ProcessPool, function: Callable[[T], R], tasks: Iterable[T], *, seconds: float
) -> Iterator[tuple[T, R | Lost]]:
    """Each task with ``function(task)``, as they end. One that raises, dies or takes longer than ``seconds`` costs its own
    result, not the rest."""
    with deaf_to_interrupts():
        futures = {pool.schedule(_staying, args=[function, task], timeout=seconds): task for task in tasks}
    for future in as_completed(futures):
        result: R | Lost
        try:
            result = _result(future, seconds, ())
        except Lost as loss:
            result = loss
        yield futures[future], result


def _staying(function: Callable[..., R], *args: Any) -> R:
    """In a process of the pool: a way out of the program is no result."""
    try:
        return function(*args)
    except (SystemExit, KeyboardInterrupt) as way_out:
        raise Lost(f"left by {type(way_out).__name__}") from None


def _result(future: ProcessFuture, seconds: float, raises: tuple[type[Exception], ...]) -> Any:
    try:
        return future.result()
    except FutureTimeout:
        raise Lost(f"did not end within {seconds:.0f} s, and was stopped") from None
    except ProcessExpired as death:
        raise Lost(f"ended its process ({_how(death.exitcode)})") from None
    except Exception as problem:
        if isinstance(problem, (Lost, *raises)):
            raise
        raise Lost(f"raised {type(problem).__name__}: {' '.join(str(problem).split())}") from None


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
