"""Processes that work for this one and are gone when it has no use for them any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pebble import ProcessPool


@contextlib.contextmanager
def stopping(pool: ProcessPool) -> Iterator[ProcessPool]:
    """``pool``, stopped at the end whatever it was doing. By itself it would first do all that was scheduled: whoever
    interrupts a run would wait for the rest of it."""
    try:
        yield pool
    finally:
        pool.stop()
        pool.join()
