"""Where a task is when its time is nearly up: Python's watchdog writes down the stacks of a process before it is stopped."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

BEFORE = 0.9
"""Share of its time after which a task's stacks are written down."""
_FRAME = re.compile(r'  File "([^<"].*)", line (\d+) in (.+)')
_LIBRARIES = [sysconfig.get_path(one) for one in ("stdlib", "purelib", "platlib")]
_OWN = Path(__file__).parent
_RUNS = tuple(f"{one}{os.sep}" for one in (*_LIBRARIES, _OWN))
"""Folders of code that runs somebody else's: the interpreter's, libraries', this package's."""
_READS = f"{_OWN.with_name('policies')}{os.sep}"
"""The folder of what a policy from outside calls, and of policies."""


@contextlib.contextmanager
def watched(notes: Path, seconds: float) -> Iterator[None]:
    """A task that is stopped after ``seconds``. Where it is shortly before then goes to ``notes``."""
    with notes.open("w") as file:
        faulthandler.dump_traceback_later(BEFORE * seconds, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def place(notes: Path) -> str | None:
    """The innermost line of somebody's own code, or else of a policy's here, as "FILE, line N (FUNCTION)"; None where there is
    none, or no notes."""
    try:
        frames = _FRAME.findall(notes.read_text())
    except OSError:
        return None
    theirs = [frame for frame in frames if not frame[0].startswith(_RUNS)]
    theirs.sort(key=lambda frame: frame[0].startswith(_READS))
    return "{}, line {} ({})".format(os.path.basename(theirs[0][0]), *theirs[0][1:]) if theirs else None
