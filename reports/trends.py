"""Change points and regressions that still stand, found in the series of a history.

Requirements this file must meet:

* Change points come from a library that is known and tested (ruptures: exact optimal partitioning with pruning,
  Killick, Fearnhead and Eckley, JASA 107, 2012), not from thresholds between neighbouring nights.
* One slow night is not a level: a level lasts ``SHORTEST_LEVEL`` runs at least.
* A drop counts only while it lasts: a regression is a drop after which no later level came back.
* What was wrong whenever it was judged never held: that is no regression, and is told apart from one.
* A row that is no longer timed, because its outputs differ, is a regression like a property that broke.
* What is reported names the two runs between which it began and what changed between them.
* A policy that breaks, breaks many properties at once: what went wrong between the same two runs is one regression.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from reports import wording
from reports.chart import Level
from reports.circumstances import environment_differences
from reports.compare import MARGIN
from reports.record import WRONG

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from reports.history import History, Judgement, PastRun, PropertyKey, TimingKey, TimingPoint

SHORTEST_LEVEL = 3
"""Runs."""
QUIETEST = 0.002
"""Least run-to-run deviation of a log ratio that is believed: a series that repeats exactly is not free of noise."""
PENALTY = 3.0
"""Cost of one more change point, in units of variance x log(runs): above BIC's 2, for hundreds of series."""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Something that went wrong and has not recovered."""

    subject: str
    last_good: PastRun
    first_bad: PastRun
    sentence: str
    effect: float | None
    """For timings: relative change of the ratio."""
    differences: tuple[str, ...]
    """What changed in the environment between the two runs."""


@dataclass(frozen=True, kw_only=True)
class NeverHeld:
    """Something that was wrong in every run of its machine that judged it."""

    subject: str
    first: PastRun
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Trends:
    """The levels of every timing series, the regressions that still stand, worst first, and what never held."""

    levels: dict[TimingKey, tuple[Level, ...]]
    regressions: tuple[Regression, ...]
    never_held: tuple[NeverHeld, ...]


def find_trends(history: History) -> Trends:
    """Search every series; a drop of the ratio counts when it exceeds ``MARGIN``."""
    levels = {key: find_levels([p.ratio for p in points]) for key, points in history.timings.items()}
    slow = [r for key, points in history.timings.items() for r in _lost(history, key, points, levels[key])]
    standing = [one for key, points in history.properties.items() for one in _broken(history, key, points)]
    standing += [one for key, points in history.equality.items() for one in _untimed(history, key, points)]
    alike = _alike(standing)
    wrong = [_went_wrong(history, group, good) for group in alike if (good := group[0].good) is not None]
    return Trends(
        levels=levels,
        regressions=(*wrong, *sorted(slow, key=lambda r: r.effect or 0.0)),
        never_held=tuple(_never_held(history, group) for group in alike if group[0].good is None),
    )


def find_levels(ratios: list[float]) -> tuple[Level, ...]:
    """Cut a series of positive ratios, one a run, where its level changes."""
    if len(ratios) < 2 * SHORTEST_LEVEL:
        return (Level(first=0, after=len(ratios), value=statistics.median(ratios)),) if ratios else ()
    import numpy
    import ruptures

    logs = numpy.log(numpy.asarray(ratios))
    steps = numpy.abs(numpy.diff(logs))
    # Differences of neighbours see the noise and not the levels; 0.6745 turns a median deviation into a standard one.
    deviation = max(float(numpy.median(steps)) / (0.6745 * math.sqrt(2)), QUIETEST)
    # A running median of three keeps steps and drops a single wild night, which least squares would call a level.
    windows = numpy.lib.stride_tricks.sliding_window_view(numpy.pad(logs, 1, mode="reflect"), 3)
    smooth = numpy.median(windows, axis=1).reshape(-1, 1)
    ends = (
        ruptures.KernelCPD(kernel="linear", min_size=SHORTEST_LEVEL)
        .fit(smooth)
        .predict(pen=PENALTY * deviation**2 * math.log(len(ratios)))
    )
    return tuple(
        Level(first=first, after=after, value=math.exp(float(numpy.median(logs[first:after]))))
        for first, after in pairwise([0, *map(int, ends)])
    )


def _lost(history: History, key: TimingKey, points: tuple[TimingPoint, ...], levels: tuple[Level, ...]) -> list[Regression]:
    if key.subject.startswith("original"):
        return []
    found = []
    for place, (before, after) in enumerate(pairwise(levels)):
        floor = before.value * (1 - MARGIN)
        if all(level.value < floor for level in levels[place + 1 :]):
            good, bad = history.runs[points[after.first - 1].run], history.runs[points[after.first].run]
            found.append(_regression(key, good, bad, before.value, after.value, levels[-1].value))
    return found


def _regression(key: TimingKey, good: PastRun, bad: PastRun, before: float, after: float, now: float) -> Regression:
    effect = after / before - 1
    still = "" if now == after else f", now {wording.ratio(now)}"
    return Regression(
        subject=describe(key),
        last_good=good,
        first_bad=bad,
        sentence=(f"{wording.ratio(before)}, then {wording.ratio(after)} ({wording.change(effect)}){still}; not recovered"),
        effect=effect,
        differences=environment_differences(good.environment, bad.environment),
    )


def describe(key: TimingKey) -> str:
    """A timing series in words."""
    return f"{key.case}: {_row(key)}, {_machine(key)}"


def _row(key: TimingKey) -> str:
    clock = "" if key.clock == "end-to-end" else f", {key.clock} time"
    return f"{key.workload} {key.phase}, {key.shape}, {key.dtype} on {key.device}{clock}, {key.subject} against {key.baseline}"


def _machine(key: TimingKey) -> str:
    return f"machine {key.machine}, {wording.count(key.threads, 'thread')}"


class _Standing(NamedTuple):
    """What was wrong when it was last judged: ``what`` (a property, a row) of a ``case``, since run ``bad`` and for ``wrong``
    runs by now. ``good`` is the run before, None where it never held. Runs are places in ``History.runs``."""

    case: str
    what: str
    kind: str
    """What several of them are called."""
    where: str
    """Ends the sentence that names it."""
    good: int | None
    bad: int
    wrong: int
    outcome: str
    reason: str


def _broken(history: History, key: PropertyKey, points: tuple[Judgement, ...]) -> Iterator[_Standing]:
    """A property is judged on each machine by itself: one machine that holds cannot hide another that does not."""
    for machine in dict.fromkeys(history.runs[p.run].environment.machine for p in points):
        own = tuple(p for p in points if history.runs[p.run].environment.machine == machine and p.outcome != "unavailable")
        since = _since(own)
        if since is not None:
            where = f" ({key.policy}), machine {machine}"
            yield _Standing(key.case, key.property, "properties", where, *since, own[-1].outcome, own[-1].reason)


def _untimed(history: History, key: TimingKey, points: tuple[Judgement, ...]) -> Iterator[_Standing]:
    since = _since(points)
    if since is not None:
        yield _Standing(key.case, _row(key), "timed rows", f", {_machine(key)}", *since, "FAILED", points[-1].reason)


def _since(points: tuple[Judgement, ...]) -> tuple[int | None, int, int] | None:
    """The last run in which it held, the first in which it was wrong since, and in how many it was; None where it held last."""
    start = len(points)
    while start and points[start - 1].outcome in WRONG:
        start -= 1
    if start == len(points):
        return None
    return points[start - 1].run if start else None, points[start].run, len(points) - start


def _alike(standing: list[_Standing]) -> Collection[list[_Standing]]:
    """What went wrong between the same two runs, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[_Standing]] = {}
    for one in standing:
        groups.setdefault((one.case, one.kind, one.where, one.good, one.bad, one.wrong, one.outcome), []).append(one)
    return groups.values()


def _subject(group: list[_Standing]) -> str:
    first = group[0]
    return f"{first.case}: {first.what if len(group) == 1 else f'{len(group):,} {first.kind}'}{first.where}"


def _reason(group: list[_Standing]) -> str:
    """The reason of the first, and the names of some others."""
    first, *others = group
    if not others:
        return first.reason
    return f"{first.what}: {first.reason.removesuffix('.')}; also {wording.some_of([one.what for one in others])}"


def _went_wrong(history: History, group: list[_Standing], good: int) -> Regression:
    first = group[0]
    last_good, first_bad = history.runs[good], history.runs[first.bad]
    runs = "run" if first.wrong == 1 else f"{first.wrong:,} runs"
    return Regression(
        subject=_subject(group),
        last_good=last_good,
        first_bad=first_bad,
        sentence=f"{first.outcome} in the last {runs}: {_reason(group)}",
        effect=None,
        differences=environment_differences(last_good.environment, first_bad.environment),
    )


def _never_held(history: History, group: list[_Standing]) -> NeverHeld:
    first = group[0]
    sentence = f"never held, in {wording.count(first.wrong, 'run')}; {first.outcome} in the last: {_reason(group)}"
    return NeverHeld(subject=_subject(group), first=history.runs[first.bad], sentence=sentence)
