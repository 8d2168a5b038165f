"""Telling whoever waits what happens: a moving bar on a terminal, plain lines in a pipe. Always on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reports.record import WRONG, Timing, Verdict
from reports.wording import judged, one_line

from ..watcher import Watcher


class Reporter(Watcher):
    """Tells it on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        self.done = self.total = 0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, what: str, total: int) -> None:
        if not total:
            return
        self.done, self.total = 0, total
        if not self.console.is_terminal:
            self.say(f"{what}: {total}")
            return
        if self.bar is not None:
            self.bar.stop()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(what, total=total)
        self.bar.start()

    def verdict(self, verdict: Verdict) -> None:
        reason = f": {one_line(verdict.reason)}" if verdict.reason else ""
        figures = ", ".join((*judged(verdict), f"{verdict.seconds:.1f} s"))
        wrong = verdict.outcome in WRONG
        outcome = verdict.outcome.upper() if wrong else verdict.outcome
        self._step(f"{verdict.case} · {verdict.property}: {outcome} ({figures}){reason}", wrong=wrong)

    def timed(self, timings: tuple[Timing, ...]) -> None:
        for row in timings:
            ratio = "" if row.ratio is None else f" {row.ratio.estimate:.2f}x [{row.ratio.low:.2f}, {row.ratio.high:.2f}]"
            reason = f": {one_line(row.reason)}" if row.verdict in ("FAILED", "VOID") else ""
            line = f"{row.case} · {row.workload} {row.phase}, {row.shape}, {row.dtype}: {row.subject} against {row.baseline}"
            self._print(f"{self._which()}{line}: {row.verdict}{ratio}{reason}", wrong=row.verdict == "FAILED")
        self._advance()

    def say(self, line: str) -> None:
        self._print(line, wrong=False)

    def _step(self, line: str, *, wrong: bool) -> None:
        if wrong or not self.console.is_terminal:
            self._print(f"{self._which()}{line}", wrong=wrong)
        self._advance()

    def _which(self) -> str:
        """Which piece of the stage is told of, where no bar says how far it is."""
        return "" if self.console.is_terminal or not self.total else f"{self.done + 1}/{self.total} "

    def _print(self, line: str, *, wrong: bool) -> None:
        text = escape(line)
        self.console.print(f"[bold red]{text}[/]" if wrong else text, soft_wrap=True)

    def _advance(self) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.advance(self.task)
