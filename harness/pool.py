"""Processes that work for this one and are gone when it has no use for them any more.

They are forked from a clean process that has imported, once, what every task needs. What they do is arithmetic on small
tensors, so each computes with one thread, and whatever happens to one (it raises, hangs, dies, fills its memory) costs its own
task: what comes back instead of a result is one line.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import as_completed
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from unittest import mock

import psutil
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from .stuck import place, watched

T = TypeVar("T")
R = TypeVar("R")
PRELOAD = "harness.preload"
"""What the clean process imports."""
LEFT = 97
"""Exit status of a process that a task ended as if all were well."""


def cores() -> int:
    """How many this process may use."""
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1


class Lost(Exception):
    """A task that gave no result. Says why, in one line that goes on from what was done: "... ended its process"."""


def begin() -> None:
    """Start the clean process, which imports while its parent goes on. The folder that somebody works in is not on its
    path: a ``string.py`` there would be imported for the library's."""
    forkserver.set_forkserver_preload([PRELOAD])
    compilers = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # else each process that compiles starts as many as there are cores
    with mock.patch.dict(os.environ, {**compilers, **os.environ, "PYTHONSAFEPATH": "1"}), deaf_to_interrupts():
        forkserver.ensure_running()


@contextlib.contextmanager
def processes(count: int, *, fresh: bool = False, memory: int | None = None) -> Iterator[ProcessPool]:
    """So many, gone at the end. ``fresh`` gives each task a new one, so that none meets what another left behind; ``memory``
    is how many bytes more than it has when it starts one may take."""
    begin()
    context = multiprocessing.get_context("forkserver")
    first = context.Process(target=_nothing)  # waits for the clean process to be there, and whoever interrupts that waits no more
    first.start()
    first.join()
    pool = ProcessPool(
        max_workers=count,
        max_tasks=1 if fresh else 0,
        initializer=_ready,
        initargs=[memory, list(sys.path)],
        context=context,
    )
    try:
        yield pool
    finally:  # by itself it would first do all that was scheduled: whoever interrupts a run would wait for the rest of it
        pool.stop()
        pool.join()


def _nothing() -> None:
    """What the first process does."""


def _ready(memory: int | None, paths: list[str]) -> None:
    """Prepare a new process: its memory, one thread, the parent's import path. What it prints is no result of the harness."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # who looks through all that was imported writes to it, and no longer shares its memory
    os.dup2(2, 1)
    sys.path[:] = paths
    torch.set_num_threads(1)
    if memory is not None:
        most = psutil.Process().memory_info().vms + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with_parent() -> None:
    """Whoever is killed stops nobody: what works for it would go on to the end of its task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "stacks")
        with deaf_to_interrupts():  # a pool begins its threads with the first task, and they its processes
            future = _scheduled(pool, notes, seconds, function, *args)
        return _result(future, notes, seconds, raises)


def by_processes(most: int, function: Callable[[T], R], tasks: Sequence[T], *, seconds: float) -> Iterator[tuple[T, R | Lost]]:
    """As ``in_parallel``, by ``most`` processes of its own at the most, and none where there is no task."""
    if tasks:
        with processes(min(most, len(tasks))) as pool:
            yield from in_parallel(pool, function, tasks, seconds=seconds)


def in_parallel(
    pool: ProcessPool, function: Callable[[T], R], tasks: Iterable[T], *, seconds: float
) -> Iterator[tuple[T, R | Lost]]:
    """Each task with ``function(task)``, as they end. One that raises, dies or takes longer than ``seconds`` costs its own
    result, not the rest."""
    with tempfile.TemporaryDirectory() as folder:
        futures = {}
        with deaf_to_interrupts():
            for number, task in enumerate(tasks):
                notes = Path(folder, f"stacks {number}")
                futures[_scheduled(pool, notes, seconds, function, task)] = task, notes
        for future in as_completed(futures):
            task, notes = futures[future]
            result: R | Lost
            try:
                result = _result(future, notes, seconds, ())
            except Lost as loss:
                result = loss
            yield task, result


def _scheduled(pool: ProcessPool, notes: Path, seconds: float, function: Callable[..., Any], *args: Any) -> ProcessFuture:
    """A task whose process writes to ``notes`` where it is, and is stopped, when its ``seconds`` are over."""
    return pool.schedule(_staying, args=[notes, seconds, function, *args], timeout=seconds)


def _staying(notes: Path, seconds: float, function: Callable[..., R], *args: Any) -> R:
    """In a process of the pool: a way out of the program is no result. One with status 0 would pass for a process that has no
    more to do, and be waited for."""
    process, leave = os.getpid(), os._exit

    def left(status: int) -> NoReturn:
        leave(LEFT if status == 0 and os.getpid() == process else status)

    try:
        with mock.patch.object(os, "_exit", left), watched(notes, seconds):
            return function(*args)
    except (SystemExit, KeyboardInterrupt) as way_out:
        raise Lost(f"left by {type(way_out).__name__}") from None


def _result(future: ProcessFuture, notes: Path, seconds: float, raises: tuple[type[Exception], ...]) -> Any:
    try:
        return future.result()
    except FutureTimeout:
        where = place(notes)
        stopped = "was stopped" if where is None else f"was stopped in {where}"
        raise Lost(f"did not end within {seconds:.0f} s, and {stopped}") from None
    except ProcessExpired as death:
        raise Lost(f"ended its process ({_how(death.exitcode)})") from None
    except Exception as problem:
        if isinstance(problem, (Lost, *raises)):
            raise
        raise Lost(f"raised {type(problem).__name__}: {' '.join(str(problem).split())}") from None


def _how(code: int) -> str:
    if code >= 0:
        return f"exit status {0 if code == LEFT else code}"
    return f"killed by {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"
