"""The whole exam, in parallel: one process a core, each examining one case with a part of the faults at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..interrupts import heed
from ..pool import Lost, by_processes, cores
from ..profiles import Profile
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
    profile: Profile,
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
    from .bank import find_faults

    heed()
    start = time.perf_counter()
    chosen = tuple(fault.id for fault in find_faults(faults))
    here = [entry for entry in entries if entry.unavailable is None]
    problems = [f"{entry.name}: {entry.unavailable}" for entry in entries if entry.unavailable is not None]
    cut = [chosen[place::PARTS] for place in range(PARTS)]
    parts = [
        Part(entry, names, place == 0, profile, seed, shrink, plan)
        for place, names in enumerate(cut)
        for entry in here
        if names or place == 0
    ]
    done: dict[str, list[CaseReport]] = {entry.name: [] for entry in here}
    interrupted = False
    try:
        for part, result in by_processes(workers or cores(), _examine, parts, seconds=TASK_SECONDS):
            if isinstance(result, Lost):
                problems.append(f"{part.entry.name}: not examined: that {result}")
            else:
                done[part.entry.name].append(result)
                progress(result)
    except KeyboardInterrupt:
        interrupted = True
    return FaultReport(
        profile=profile.name,
        seed=seed,
        seconds=time.perf_counter() - start,
        cases=tuple(_joined(reports, chosen) for reports in done.values() if reports),
        problems=tuple(problems),
        interrupted=interrupted,
    )


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
