"""What an interrupt does, and a request to terminate, which is one from somebody who is not at the keyboard.

numpy and torch do not stand one while they are imported: it is swallowed, or ends in a traceback of theirs. Until a command has
imported what it needs there is nothing to keep, and it ends at once; from then on an interrupt is raised where the work is.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130
"""Exit status of a command that somebody broke off, as shells have it."""


def end_at_once() -> None:
    """From now on either ends the program, unless whoever started it had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def heed() -> None:
    """From now on either is a ``KeyboardInterrupt``: what is begun is to be put in order."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _end):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _end(*_: object) -> None:
    print("harness: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
