"""Whoever waits for long work is told what happens."""

from __future__ import annotations

from reports.record import Timing, Verdict


class Watcher:
    """Is told what happens; by itself it does nothing with it."""

    def begin(self, what: str, total: int) -> None:
        """A stage of ``total`` pieces begins."""

    def verdict(self, verdict: Verdict) -> None:
        """A property was judged, which is a piece."""

    def timed(self, timings: tuple[Timing, ...]) -> None:
        """A row was timed, which is a piece."""

    def say(self, line: str) -> None:
        """Something that is no piece."""


NOBODY = Watcher()
