"""A run or a comparison as Markdown, for the summary page of a CI job.

Requirements this file must meet:

* Foreign text stays text: every character that Markdown, GitHub's tables or HTML give a meaning to is neutralised.
* The whole stays well below the megabyte that a job summary may have, however much went wrong.
* Foreign text never starts a line, where it could open a heading, a list or a fence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reports import wording
from reports.compare import Change, Comparison, ComparisonError, compare
from reports.record import WRONG
from reports.summary import Summary, columns, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reports.record import Run, Timing, Verdict

MOST_FAILURES = 20
MOST_LINES = 40
"""Lines of one list."""
LONGEST_CELL = 300
"""Characters."""

# Structure by an entity, which can never be structure again; emphasis and the like by a backslash, which reads better.
_ENTITIES = {ord(c): f"&#{ord(c)};" for c in "\\|<>&`@$~"}
_ESCAPES = {ord(c): f"\\{c}" for c in "*_[]#"}


def escape(text: str) -> str:
    """Foreign text as Markdown that shows exactly that text, on one line and at most ``LONGEST_CELL`` characters."""
    return verbatim(wording.clipped(wording.one_line(text), LONGEST_CELL))


def verbatim(text: str) -> str:
    """As ``escape``, however long."""
    return wording.one_line(text).translate(_ENTITIES | _ESCAPES)


def render_markdown(run: Run, previous: Run | None = None, *, place: str | None = None) -> str:
    """The run's answers, matrix, slowdowns and evidence; with the differences to ``previous`` when it is given.

    Commands name the run by ``place``, its folder, or else by its id.
    """
    summary = summarize(run)
    sign = {"good": "✅", "bad": "❌", "unsure": "⚠️"}[summary.level]
    parts = [f"## {sign} {escape(summary.headline)}", escape(summary.speed), *map(escape, summary.remarks)]
    if previous is not None:
        parts += _differences(previous, run)
    parts += _matrix(summary)
    parts += _slower(summary)
    parts += _untimed(summary)
    parts += _typical(run)
    parts += _evidence(summary, place or run.id)
    parts.append(
        f"<sub>run {escape(run.id)}, {escape(run.profile)}, seed {run.seed}, {wording.duration(run.seconds)}; "
        f"machine {escape(run.environment.machine)}, {escape(run.environment.cpu)}, "
        f"{wording.count(run.environment.threads, 'thread')}</sub>"
    )
    return "\n\n".join(parts) + "\n"


def render_comparison_markdown(comparison: Comparison) -> str:
    """What changed between two runs."""
    base, head = wording.named(comparison.base, comparison.base_created), wording.named(comparison.head, comparison.head_created)
    title = f"## From run {escape(base)} to run {escape(head)}"
    return "\n\n".join([title, *_changes(comparison)]) + "\n"


def _differences(previous: Run, run: Run) -> list[str]:
    title = f"### Since run {escape(wording.named(previous.id, previous.created))}"
    try:
        return [title, *_changes(compare(previous, run))]
    except ComparisonError as problem:
        return [title, f"Not comparable: {escape(str(problem))}"]


def _changes(comparison: Comparison) -> Iterator[str]:
    yield (
        f"{wording.count(comparison.verdicts_compared, 'verdict')} and "
        f"{wording.count(comparison.timings_compared, 'timed row')} compared, "
        f"{comparison.counted}."
    )
    for kind in dict.fromkeys(change.kind for change in comparison.changes):
        changes: Sequence[Change] = comparison.of(kind)
        yield f"**{kind.capitalize()}: {len(changes)}**"
        yield _list(change.sentence for change in changes)
    if comparison.differences:
        yield "**Circumstances**"
        yield _list(comparison.differences)
    for name, items in (("base", comparison.only_in_base), ("head", comparison.only_in_head)):
        if items:
            yield f"**Only in the {name} run: {len(items)}**"
            yield _list(items)


def _list(items: Iterable[str]) -> str:
    lines = [f"- · {escape(item)}" for item in items]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"- and {len(lines) - MOST_LINES} more"]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _matrix(summary: Summary) -> Iterator[str]:
    if not summary.rows:
        return
    yield "### Correctness"
    cases = [escape(case) for case, _ in summary.judged]
    held = [row for row in summary.rows if row.held]
    if held:
        examples = sum(cell.examples for row in held for cell in row.cells if cell is not None)
        properties = wording.count(len(held), "property", "properties")
        names = ", ".join(escape(row.name) for row in held)
        yield f"✓ {properties} held wherever judged ({', '.join(cases)}; {wording.count(examples, 'example')}): {names}."
    rows = [[f"**{escape(row.name)}**", *map(_cell, row.cells)] for row in summary.rows if not row.held]
    if rows:
        yield _table(["property", *cases], rows)


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    symbol = wording.OUTCOME_SYMBOLS[verdict.outcome]
    if verdict.outcome in WRONG:
        return f"**{symbol} {verdict.outcome}**<br>{verdict.examples:,} ex, {wording.count(verdict.layers_replaced, 'layer')}"
    return f"{symbol} {verdict.examples:,}" if verdict.outcome == "held" else f"{symbol} {verdict.outcome}"


def _slower(summary: Summary) -> list[str]:
    if not summary.slower:
        return []
    rows = [[escape(t.case), escape(wording.where(t)), escape(wording.pair(t)), _ratio(t)] for t in summary.slower[:MOST_LINES]]
    title = f"### Slower than the original: {len(summary.slower)}"
    return [title, _table(["case", "workload", "columns", "ratio"], rows)]


def _untimed(summary: Summary) -> list[str]:
    if not summary.wrong_timings:
        return []
    rows = [
        [escape(t.case), escape(wording.where(t)), escape(wording.pair(t)), escape(t.reason)]
        for t in summary.wrong_timings[:MOST_LINES]
    ]
    title = f"### Not timed, because something is wrong: {len(summary.wrong_timings)}"
    return [title, _table(["case", "workload", "columns", "reason"], rows)]


def _ratio(timing: Timing) -> str:
    if timing.ratio is None:
        return "–"
    return f"▼ {wording.ratio(timing.ratio.estimate)} ({wording.interval(timing.ratio)})"


def _typical(run: Run) -> list[str]:
    rows = [[escape(c.case), escape(c.pair), wording.ratio(c.mean), str(len(c.timings))] for c in columns(run)]
    return ["### Latency", _table(["case", "columns", "geometric mean", "rows"], rows)] if rows else []


def _evidence(summary: Summary, place: str) -> Iterator[str]:
    if summary.wrong:
        yield "### Evidence"
    shown: set[str] = set()
    for verdict in summary.wrong[:MOST_FAILURES]:
        failure = verdict.failure
        message = failure.message if failure else verdict.reason
        yield f"**{escape(verdict.case)}: {escape(verdict.property)}**: {verdict.outcome}. {escape(message)}"
        if failure is None:
            continue
        passing = failure.nearest_passing or {}
        rows = [[escape(axis), escape(value), escape(passing.get(axis, "–"))] for axis, value in failure.example.items()]
        yield _table(["axis", "fails", "nearest passing"], rows[:MOST_LINES])
        if failure.script:
            yield f"Again: {escape(wording.reproduce(failure.id, place))}"
            script = wording.whole(failure.script) if verdict.case not in shown else None
            if script is not None:
                yield f"<details><summary>Script</summary>\n\n{_fenced(script)}\n\n</details>"
        shown.add(verdict.case)
    if len(summary.wrong) > MOST_FAILURES:
        yield f"and {len(summary.wrong) - MOST_FAILURES} more, in the report."


def _fenced(text: str) -> str:
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{text}\n{fence}"
