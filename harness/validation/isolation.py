"""Running somebody's code where it can do no harm: in processes with a limit on time and memory."""

from __future__ import annotations

import contextlib
import functools
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
from pebble import ProcessPool

from ..pool import Lost, cores, in_parallel, processes, run_one

MEMORY = 4 * 2**30
"""Bytes that somebody else's code is given where nobody says."""


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
    """A pool whose processes are gone at the end. ``fresh`` gives each task one of its own."""
    with processes(limits.workers or cores(), fresh=fresh, memory=limits.memory) as pool:
        yield Isolated(pool, limits)


def _within_memory(function: Callable[..., Any], memory: int | None, *args: Any) -> Any:
    """In a process of the pool."""
    try:
        return function(*args)
    except MemoryError:
        most = "there is" if memory is None else f"{memory / 2**30:.1f} GiB of memory"
        raise Lost(f"asked for more than {most}") from None


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
