"""A run, a comparison or a history on the terminal; in a pipe, the same as plain lines.

Requirements this file must meet:

* On a terminal: tables and colour, and never a meaning in colour alone.
* In a pipe: one fact a line, no box drawing, no escape sequence, never wrapped or cut to a width.
* Foreign text is neither markup nor control sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from reports import wording
from reports.summary import Summary, columns, is_slower, measured_ratio, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reports.compare import Comparison
    from reports.history import History, PastRun
    from reports.record import Run, Timing, Verdict
    from reports.trends import Trends

STYLES = {
    "held": "green", "failed": "bold red", "error": "bold red", "vacuous": "bold yellow", "unavailable": "dim",
    "FASTER": "blue", "SLOWER": "bold yellow", "FAILED": "bold red", "VOID": "yellow", "SAME": "", "AMBIGUOUS": "dim",
    "good": "bold green", "bad": "bold red", "unsure": "bold yellow",
    "wrong": "bold red", "still wrong": "red", "fixed": "green", "refused": "yellow", "missing": "yellow",
    "slower": "bold yellow", "faster": "blue",
}  # fmt: skip


def show(console: Console, rendered: RenderableType, lines: Iterable[str]) -> None:
    """Print ``rendered`` on a terminal and ``lines`` anywhere else."""
    if console.is_terminal:
        console.print(rendered)
        return
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def render_terminal(run: Run, place: str | None = None) -> RenderableType:
    """The run's answers, verdict matrix and timed rows. Commands name the run by ``place``, its folder, or else by its id."""
    summary = summarize(run)
    parts: list[RenderableType] = [Text(_clean(summary.headline), style=STYLES[summary.level]), Text(summary.speed)]
    parts += [Text(_clean(remark), style="dim") for remark in summary.remarks]
    if summary.rows:
        parts.append(_matrix(summary))
    if run.timings:
        parts.append(_latency(run))
    parts += [Text(line, style=STYLES["SLOWER"]) for line in _slower_lines(summary)]
    parts += [Text(line, style=STYLES["bad"]) for line in _untimed_lines(summary)]
    parts += [Text(line, style=STYLES["bad"]) for line in _wrong_lines(summary, place or run.id)]
    return Group(*parts)


def run_lines(run: Run, place: str | None = None) -> Iterator[str]:
    """The same as ``render_terminal``, one fact a line."""
    summary = summarize(run)
    yield _clean(summary.headline)
    yield summary.speed
    yield from map(_clean, summary.remarks)
    for verdict in run.verdicts:
        told = ", ".join((verdict.outcome, *wording.judged(verdict)))
        reason = f": {verdict.reason}" if verdict.reason else ""
        yield _clean(f"{verdict.case}: {verdict.property}: {told}{reason}")
    for timing in run.timings:
        yield _clean(f"{timing.case}: {wording.where(timing)}, {wording.pair(timing)}: {_figures(timing)}")
    yield from _wrong_lines(summary, place or run.id)


def render_comparison(comparison: Comparison) -> RenderableType:
    """What changed between two runs, a coloured line each."""
    head, *rest = comparison_lines(comparison)
    return Group(Text(head, style="bold"), *(Text(line, style=STYLES.get(line.split(": ")[0], "")) for line in rest))


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """What changed between two runs; each change's line starts with its kind."""
    yield _clean(
        f"from run {wording.named(comparison.base, comparison.base_created)} "
        f"to run {wording.named(comparison.head, comparison.head_created)}: "
        f"{wording.count(comparison.verdicts_compared, 'verdict')} and "
        f"{wording.count(comparison.timings_compared, 'timed row')} compared, "
        f"{comparison.counted}"
    )
    for change in comparison.changes:
        yield _clean(f"{change.kind}: {change.sentence}")
    yield from map(_clean, comparison.differences)
    yield from (_clean(f"only in the base run: {name}") for name in comparison.only_in_base)
    yield from (_clean(f"only in the head run: {name}") for name in comparison.only_in_head)


def render_history(history: History, trends: Trends) -> RenderableType:
    """Regressions that still stand, what never held, then what was left out."""
    head, *rest = history_lines(history, trends)
    style = STYLES["bad" if trends.regressions or trends.never_held else "good"]
    return Group(Text(head, style=style), *(Text(line) for line in rest))


def history_lines(history: History, trends: Trends) -> Iterator[str]:
    """One line a regression, with the runs between which it began; one line each for what never held and a record left out."""
    standing = wording.count(len(trends.regressions), "regression has", "regressions have")
    never = f", {len(trends.never_held):,} never held" if trends.never_held else ""
    series = wording.count(len(history.timings), "timing series", "timing series")
    yield f"{standing} not recovered{never}, in {wording.count(len(history.runs), 'run')} and {series}"
    for found in trends.regressions:
        began = f"Held until run {_named(found.last_good)}, began in run {_named(found.first_bad)}."
        yield _clean(" ".join([f"{found.subject}: {found.sentence.removesuffix('.')}. {began}", *found.differences]))
    for one in trends.never_held:
        yield _clean(f"{one.subject}: {one.sentence.removesuffix('.')}. First judged in run {_named(one.first)}.")
    yield from (_clean(f"left out: {line}") for line in history.problems)


def _named(run: PastRun) -> str:
    return wording.named(run.id, run.created.isoformat())


def _clean(text: str) -> str:
    return wording.clipped(wording.one_line(text))


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(Text(_clean(name)), overflow="fold")
    return table


def _matrix(summary: Summary) -> Table:
    cases = [case for case, _ in summary.judged]
    table = _table("Verdicts (✓ held, with the examples judged; – unavailable here)", "property", *cases)
    for row in summary.rows:
        table.add_row(Text(_clean(row.name)), *map(_cell, row.cells))
    columns = zip(*(row.cells for row in summary.rows))
    layers = [sum(cell.layers_replaced for cell in column if cell is not None) for column in columns]
    table.add_row("layers replaced", *(f"{number:,}" for number in layers))
    return table


def _cell(verdict: Verdict | None) -> Text:
    if verdict is None:
        return Text("")
    words = {"held": f"{verdict.examples:,}", "unavailable": ""}
    word = words.get(verdict.outcome, verdict.outcome)
    return Text(f"{wording.OUTCOME_SYMBOLS[verdict.outcome]} {word}", style=STYLES[verdict.outcome])


def _latency(run: Run) -> Table:
    table = _table("Latency, replaced against original", "case", "columns", "mean", "rows", "slower")
    for found in columns(run):
        slower = sum(map(is_slower, found.timings))
        shown = Text(f"▼ {slower}" if slower else "", style=STYLES["SLOWER"])
        table.add_row(
            Text(_clean(found.case)),
            Text(_clean(found.pair)),
            wording.ratio(found.mean),
            str(len(found.timings)),
            shown,
        )
    return table


def _slower_lines(summary: Summary) -> Iterator[str]:
    for timing in summary.slower:
        yield _clean(f"▼ {timing.case}: {wording.where(timing)}, {wording.pair(timing)}: {_figures(timing)}")


def _figures(timing: Timing) -> str:
    ratio = measured_ratio(timing)
    why = "; ".join((timing.reason, *timing.warnings))
    if ratio is None:
        return f"{timing.verdict}: {why}"
    return f"{timing.verdict} {wording.ratio(ratio.estimate)} ({wording.interval(ratio)}): {why}"


def _untimed_lines(summary: Summary) -> Iterator[str]:
    for timing in summary.wrong_timings:
        yield _clean(f"{timing.case}: {wording.where(timing)}, {wording.pair(timing)}: not timed: {timing.reason}")


def _wrong_lines(summary: Summary, place: str) -> Iterator[str]:
    for verdict in summary.wrong:
        failure = verdict.failure
        message = failure.message if failure else verdict.reason
        again = f" ({wording.reproduce(failure.id, place)})" if failure and failure.script else ""
        symbol = wording.OUTCOME_SYMBOLS[verdict.outcome]
        yield _clean(f"{symbol} {verdict.case}: {verdict.property}: {message}{again}")
