"""What a run says at a glance: is anything wrong, is anything slower, and how much was looked at.

Requirements this file must meet:

* Every renderer gives the same answer, because it is worked out here once.
* Nothing judged is not "nothing wrong": an empty, cut-short or wholly unavailable run never reads as good.
* A comparison of two original columns informs; only a replaced column can be called slower.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from reports import wording
from reports.record import WRONG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reports.record import Interval, Run, Timing, TimingVerdict, Verdict


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the verdict matrix: a property, and its verdict for each column or None, where it was not judged."""

    name: str
    cells: tuple[Verdict | None, ...]

    @property
    def held(self) -> bool:
        """Whether it held wherever it was judged."""
        return all(cell is None or cell.outcome == "held" for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The answers of the first screen."""

    level: Literal["good", "bad", "unsure"]
    headline: str
    remarks: tuple[str, ...]
    """What limits the headline, one sentence each."""
    wrong: tuple[Verdict, ...]
    wrong_timings: tuple[Timing, ...]
    unavailable: tuple[Verdict, ...]
    narrower: tuple[Verdict, ...]
    """Those that held, of less than was to be asked, because an original could not do the rest."""
    slower: tuple[Timing, ...]
    """Replaced columns that are slower than what they replace, slowest first."""
    speed: str
    """One sentence on the timed rows."""
    judged: tuple[tuple[str, str], ...]
    """The columns of the verdict matrix: cases and their policies."""
    rows: tuple[Row, ...]
    examples: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A replaced column against an original one on a case, over all measured workloads."""

    case: str
    pair: str
    mean: float
    """Geometric mean of the ratios."""
    timings: tuple[Timing, ...]


def summarize(run: Run) -> Summary:
    """Work out what a run says; never raises on a run that could be read."""
    wrong = tuple(v for v in run.verdicts if v.outcome in WRONG)
    wrong_timings = tuple(t for t in run.timings if t.verdict == "FAILED")
    unavailable = tuple(v for v in run.verdicts if v.outcome == "unavailable")
    judged, rows = _matrix(run)
    level, headline = _headline(run, len(wrong), len(wrong_timings), len(unavailable))
    return Summary(
        level=level,
        headline=headline,
        remarks=_remarks(run, unavailable),
        wrong=wrong,
        wrong_timings=wrong_timings,
        unavailable=unavailable,
        narrower=tuple(v for v in run.verdicts if v.outcome == "held" and v.reason),
        slower=tuple(sorted((t for t in run.timings if is_slower(t)), key=_estimate)),
        speed=_speed(run),
        judged=judged,
        rows=rows,
        examples=sum(v.examples for v in run.verdicts),
        layers=sum(v.layers_replaced for v in run.verdicts),
    )


def is_slower(timing: Timing) -> bool:
    """Whether a replaced column was shown to be slower than an original one."""
    return timing.verdict == "SLOWER" and is_replaced(timing)


def is_replaced(timing: Timing) -> bool:
    """Whether the row's subject is a replacement, not another way to run the original."""
    return not timing.subject.startswith("original")


class Rated(Protocol):
    """A timed row, whole or as much of it as the history keeps."""

    @property
    def verdict(self) -> TimingVerdict: ...
    @property
    def ratio(self) -> Interval | None: ...


def measured_ratio(timing: Rated) -> Interval | None:
    """The row's ratio, or None: it was not timed, is void, or holds a ratio that no two times have."""
    ratio = timing.ratio
    if ratio is None or timing.verdict in ("VOID", "FAILED") or not 0 < ratio.low <= ratio.estimate <= ratio.high:
        return None
    return ratio


def typical_ratio(timings: Sequence[Timing]) -> float | None:
    """Geometric mean of the rows' ratios; None where no row has one."""
    logs = [math.log(ratio.estimate) for t in timings if (ratio := measured_ratio(t)) is not None]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def columns(run: Run) -> tuple[Columns, ...]:
    """The run's replaced columns that were measured at least once, in the order of the record."""
    groups: dict[tuple[str, str], list[Timing]] = {}
    for timing in run.timings:
        if is_replaced(timing) and measured_ratio(timing) is not None:
            groups.setdefault((timing.case, wording.pair(timing)), []).append(timing)
    return tuple(
        Columns(case=case, pair=pair, mean=mean, timings=tuple(timings))
        for (case, pair), timings in groups.items()
        if (mean := typical_ratio(timings)) is not None
    )


def _estimate(timing: Timing) -> float:
    return timing.ratio.estimate if timing.ratio is not None else 0.0


def _matrix(run: Run) -> tuple[tuple[tuple[str, str], ...], tuple[Row, ...]]:
    judged = tuple(dict.fromkeys((v.case, v.policy) for v in run.verdicts))
    found = {(v.case, v.policy, v.property): v for v in run.verdicts}
    rows = tuple(
        Row(name=name, cells=tuple(found.get((case, policy, name)) for case, policy in judged))
        for name in dict.fromkeys(v.property for v in run.verdicts)
    )
    return judged, rows


def _headline(run: Run, wrong: int, wrong_timings: int, unavailable: int) -> tuple[Literal["good", "bad", "unsure"], str]:
    judged = len(run.verdicts) - unavailable
    if wrong or wrong_timings:
        parts = []
        if wrong:
            parts.append(f"{wrong} of {wording.count(judged, 'verdict')} did not hold")
        if wrong_timings:
            parts.append(f"{wording.count(wrong_timings, 'row')} could not be timed")
        return "bad", "; ".join(parts)
    if not judged and not run.timings:
        return "unsure", "Nothing was judged in this run"
    if not judged:
        return "unsure", "Outputs agreed wherever they were timed; no property was judged"
    every = "the one verdict" if judged == 1 else f"all {judged:,} verdicts"
    if not run.complete:
        return "unsure", f"{every.capitalize()} so far held, but the run was cut short"
    return "good", f"Nothing is wrong: {every} held"


def _remarks(run: Run, unavailable: tuple[Verdict, ...]) -> tuple[str, ...]:
    remarks = []
    if not run.complete:
        remarks.append("The run was cut short: what follows is what it had found by then.")
    if unavailable:
        which = (v.case if v.property == "available" else f"{v.property} of {v.case}" for v in unavailable)
        remarks.append(f"Not judged here: {', '.join(dict.fromkeys(which))}.")
    values = [f"{value} of {c.case}" for c in run.coverage for value in c.missed_values]
    if values:
        never = wording.count(len(values), "claimed value was", "claimed values were")
        remarks.append(f"{never} never judged: {wording.some_of(values)}.")
    pairs = [c.case for c in run.coverage for _ in c.missed_pairs]
    if pairs and run.profile != "quick":  # which never has the examples for all pairs
        never = wording.count(len(pairs), "claimed pair of values was", "claimed pairs of values were")
        remarks.append(f"{never} never judged: {', '.join(dict.fromkeys(pairs))}.")
    lane = run.null_lane
    if lane is not None and lane.alarms:
        remarks.append(
            f"The same call timed against itself raised {wording.count(lane.alarms, 'alarm')} in "
            f"{lane.comparisons:,}: do not trust small differences in this run."
        )
    return tuple(remarks)


_WORDS: tuple[tuple[TimingVerdict, str], ...] = (
    ("FASTER", "faster"),
    ("SAME", "the same"),
    ("SLOWER", "slower"),
    ("AMBIGUOUS", "undecided"),
    ("VOID", "void"),
    ("FAILED", "not timed"),
)


def _speed(run: Run) -> str:
    rows = tuple(t for t in run.timings if is_replaced(t))
    if not rows:
        return "No replacement was timed in this run."
    counts = Counter(t.verdict for t in rows)
    parts = ", ".join(f"{counts[verdict]} {word}" for verdict, word in _WORDS if counts[verdict])
    typical = typical_ratio(rows)
    mean = f"; geometric mean {wording.ratio(typical)}" if typical is not None else ""
    return f"Replaced against original on {wording.count(len(rows), 'row')}: {parts}{mean}."
