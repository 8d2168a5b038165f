"""Running somebody's code where it can do no harm: in processes with a limit on time and memory.

Whatever happens to a process (it hangs, dies, fills its memory) costs its own task; what comes back instead of a result
is one line. A ``fresh`` pool gives each task a new process, so that none meets what another left behind. Processes are
forked from a clean one that has imported what every task needs.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any
from unittest import mock

import psutil
from pebble import ProcessPool

from ..pool import Lost, deaf_to_interrupts, in_parallel, run_one, stopping

PRELOAD = "harness.validation.preload"
"""What the clean process imports."""
MEMORY = 4 * 2**30
"""Bytes that somebody else's code is given where nobody says."""


def begin() -> None:
    """Start the clean process, which imports while its parent goes on. The folder that somebody works in is not on its
    path: a ``string.py`` there would be imported for the library's."""
    forkserver.set_forkserver_preload([PRELOAD])
    with mock.patch.dict(os.environ, PYTHONSAFEPATH="1"), deaf_to_interrupts():
        forkserver.ensure_running()


@dataclass(frozen=True)
class Limits:
    """``seconds`` a task, ``memory`` in bytes above what a process has when it starts, ``workers`` processes. On a GPU memory
    has no limit: its driver reserves more addresses than any machine has bytes."""

    seconds: float = 60.0
    memory: int | None = MEMORY
    workers: int | None = None


class Isolated:
    """A pool of limited processes."""

    def __init__(self, pool: ProcessPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits

    def run(
        self, function: Callable[..., Any], *args: Any, raises: tuple[type[Exception], ...] = (), besides: float = 0.0
    ) -> Any:
        """The result of ``function(*args)``, which has ``besides`` seconds more than a check. Raises one of ``raises`` where the
        function did, and ``Lost`` for everything else that gives no result."""
        return run_one(self.pool, self._limited(function), *args, seconds=self.limits.seconds + besides, raises=raises)

    def run_all(self, function: Callable[[Any], Any], tasks: list[Any], *, besides: float = 0.0) -> Iterator[tuple[Any, Any]]:
        """Each task with ``function(task)``, or with the ``Lost`` that came instead, as they end."""
        return in_parallel(self.pool, self._limited(function), tasks, seconds=self.limits.seconds + besides)

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(_within_memory, function, self.limits.memory)


@contextlib.contextmanager
def isolated(limits: Limits, *, fresh: bool) -> Iterator[Isolated]:
    """A pool whose processes are gone at the end."""
    begin()
    pool = ProcessPool(
        max_workers=limits.workers or len(os.sched_getaffinity(0)),
        max_tasks=1 if fresh else 0,
        initializer=_limit,
        initargs=[limits.memory, list(_paths())],
        context=multiprocessing.get_context("forkserver"),
    )
    with stopping(pool):
        yield Isolated(pool, limits)


def _within_memory(function: Callable[..., Any], memory: int | None, *args: Any) -> Any:
    """In a process of the pool."""
    try:
        return function(*args)
    except MemoryError:
        most = "there is" if memory is None else f"{memory / 2**30:.1f} GiB of memory"
        raise Lost(f"asked for more than {most}") from None


def _paths() -> Iterator[str]:
    import sys

    yield from sys.path


@contextlib.contextmanager
def limited(memory: int = MEMORY) -> Iterator[None]:
    """Inside, this process is given at most ``memory`` bytes more than it has: a model of a library's own sizes then does not
    run, where it would else fill the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _limit(memory: int | None, paths: list[str]) -> None:
    """Prepare a new process: its memory, one thread, the parent's import path. What it prints is no result of the harness."""
    import sys

    import torch

    os.dup2(2, 1)
    sys.path[:] = paths
    torch.set_num_threads(1)
    if memory is not None:
        most = psutil.Process().memory_info().vms + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
