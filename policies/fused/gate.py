"""Threads that call one layer whose weights are packed.

While a thread is inside, weights may take their plain form back (somebody needs it), and a call goes on with whichever form it
finds. But none may be packed: its plain values would vanish under an operator that reads them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Gate:
    """Counts who is inside. A thread that is inside already is not kept waiting by itself."""

    def __init__(self) -> None:
        self._left = threading.Condition(threading.Lock())
        self._inside: Counter[int] = Counter()

    @contextmanager
    def inside(self, stale: Callable[[], bool], renew: Callable[[], None]) -> Iterator[None]:
        """A call. Where the layer is ``stale``, it is made anew first, when no other thread is inside."""
        me = threading.get_ident()
        with self._left:
            while stale():
                if any(thread != me for thread in self._inside):
                    self._left.wait()
                else:
                    renew()
                    break
            self._inside[me] += 1
        try:
            yield
        finally:
            with self._left:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                self._left.notify_all()
