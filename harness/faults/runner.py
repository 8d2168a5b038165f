"""The whole exam, in parallel: one process a core, each examining one case with a part of the faults at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..interrupts import heed
from ..pool import Lost, cores, in_parallel, processes
from ..profiles import PROFILES, Profile
from ..registry import CaseEntry
from .report import CaseReport, FaultReport

TASK_SECONDS = 1800.0
"""A part of an exam that takes longer is taken to hang."""
PARTS = 3
"""Into how many parts a case's faults are cut, so that cores finish together."""


@dataclass(frozen=True)
class Part:
    """Some of the faults on one case; honest variants go with the first part."""

    entry: CaseEntry
    faults: tuple[str, ...]
    first: bool
    profile: Profile
    seed: int
    shrink: bool
    plan: str


Progress = Callable[[CaseReport], None]


def run_faults(
    entries: tuple[CaseEntry, ...],
    *,
    faults: tuple[str, ...] = (),
    profile: str | Profile = "regression",
    plan: str = "auto",
    seed: int = 0,
    shrink: bool = False,
    workers: int | None = None,
    progress: Progress = lambda _: None,
) -> FaultReport:
    """Try every fault (``faults``: those of these names or rows) on every case that it fits, and say what became of it.

    ``shrink`` makes each example on which a fault was noticed as simple as it can be. ``progress`` is told of each part
    that is done. Cases whose library is missing are problems of the report. Raises ``UnknownFault``.
    """
    heed()
    start = time.perf_counter()
    chosen = _names(faults)
    depth = PROFILES[profile] if isinstance(profile, str) else profile
    here = [entry for entry in entries if entry.unavailable is None]
    problems = [f"{entry.name}: {entry.unavailable}" for entry in entries if entry.unavailable is not None]
    parts = [Part(entry, chosen[place::PARTS], place == 0, depth, seed, shrink, plan) for place in range(PARTS) for entry in here]
    done: dict[str, list[CaseReport]] = {entry.name: [] for entry in here}
    interrupted = False
    try:
        for part, result in _in_parallel([part for part in parts if part.faults or part.first], workers):
            if isinstance(result, Lost):
                problems.append(f"{part.entry.name}: not examined: that {result}")
            else:
                done[part.entry.name].append(result)
                progress(result)
    except KeyboardInterrupt:
        interrupted = True
    return FaultReport(
        profile=depth.name,
        seed=seed,
        seconds=time.perf_counter() - start,
        cases=tuple(_joined(reports, chosen) for reports in done.values() if reports),
        problems=tuple(problems),
        interrupted=interrupted,
    )


def _names(faults: tuple[str, ...]) -> tuple[str, ...]:
    from .bank import find_faults

    return tuple(fault.id for fault in find_faults(faults))


def _in_parallel(parts: list[Part], workers: int | None) -> Iterator[tuple[Part, CaseReport | Lost]]:
    """Each part with its report, or with why there is none, as they finish."""
    count = min(workers or cores(), len(parts))
    if count == 0:
        return
    with processes(count) as pool:
        yield from in_parallel(pool, _examine, parts, seconds=TASK_SECONDS)


def _examine(part: Part) -> CaseReport:
    from ..plans import by_plan
    from .bank import find_faults
    from .exam import examine

    with by_plan(part.plan) as replacer:
        return examine(
            part.entry.load(),
            faults=find_faults(part.faults) if part.faults else (),
            profile=part.profile,
            seed=part.seed,
            shrink=part.shrink,
            honest=part.first,
            replacer=replacer,
        )


def _joined(reports: list[CaseReport], order: tuple[str, ...]) -> CaseReport:
    """One case's parts as one report, faults in the bank's order."""
    place = {name: index for index, name in enumerate(order)}
    outcomes = sorted((one for report in reports for one in report.outcomes), key=lambda one: place[one.fault])
    return CaseReport(
        case=reports[0].case,
        outcomes=tuple(outcomes),
        control=tuple(alarm for report in reports for alarm in report.control),
        honest=tuple(alarm for report in reports for alarm in report.honest),
        faults=len(order),
    )
