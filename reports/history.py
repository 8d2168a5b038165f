"""A folder of runs read as series: each timing and each property over the nights.

Requirements this file must meet:

* Many machines write, nobody locks, merging is copying: the folder is searched for records wherever they lie, and a
  run that was copied twice counts once.
* A damaged, foreign or half-written record costs one line and nothing else.
* 1,000 runs are read in seconds: raw samples, evidence and coverage, nine tenths of a record, are skipped unparsed.
* A series never mixes machines, thread counts, policies, dtypes, devices, clocks or columns.
"""

from __future__ import annotations

import contextlib
import datetime
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from reports import record, storage
from reports.summary import measured_ratio

if TYPE_CHECKING:
    from pathlib import Path


class HistoryError(ValueError):
    """A folder holds no run that can be read. One line, with the folder."""


# ``gc=False``: a million of these hold no cycles, and the collector would walk them again and again.
class _Timing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    case: str
    workload: str
    phase: str
    shape: str
    dtype: str
    device: str
    baseline: str
    subject: str
    verdict: record.TimingVerdict
    reason: str = ""
    ratio: record.Interval | None = None
    clock: str = "end-to-end"


class _Verdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    case: str
    policy: str
    property: str
    outcome: record.Outcome
    reason: str = ""


class _PartialRun(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    id: str
    created: datetime.datetime
    complete: bool
    environment: record.Environment
    verdicts: tuple[_Verdict, ...] = ()
    timings: tuple[_Timing, ...] = ()


_DECODER = msgspec.json.Decoder(_PartialRun)


class TimingKey(NamedTuple):
    """What must agree for two timings to stand in one series."""

    machine: str
    threads: int
    case: str
    workload: str
    phase: str
    shape: str
    dtype: str
    device: str
    clock: str
    baseline: str
    subject: str


class PropertyKey(NamedTuple):
    """What must agree for two verdicts to stand in one series; a policy's name says its plan and device too."""

    case: str
    policy: str
    property: str


class TimingPoint(NamedTuple):
    """One run's ratio (baseline time over subject time); ``run`` is its place in ``History.runs``."""

    run: int
    ratio: float


class Judgement(NamedTuple):
    """One run's outcome; ``run`` is its place in ``History.runs``."""

    run: int
    outcome: record.Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What the history keeps of a run apart from its figures."""

    id: str
    created: datetime.datetime
    complete: bool
    environment: record.Environment


@dataclass(frozen=True, kw_only=True)
class History:
    """Runs by time of creation, their series, and one line for each record that was left out."""

    folder: str
    runs: tuple[PastRun, ...]
    problems: tuple[str, ...]
    timings: dict[TimingKey, tuple[TimingPoint, ...]]
    properties: dict[PropertyKey, tuple[Judgement, ...]]
    equality: dict[TimingKey, tuple[Judgement, ...]]
    """Of each timed row that was FAILED in some run: in which runs it was, and in which its subject was timed."""


def read_history(folder: Path) -> History:
    """Read every ``run.json`` under ``folder``.

    Raises ``HistoryError`` when the folder cannot be searched or no record in it can be read.
    """
    if not folder.is_dir():
        raise HistoryError(f"{folder}: no such folder; give a folder that holds run folders")
    runs, problems = _read_runs(sorted(folder.rglob(storage.RECORD_NAME)))
    if not runs:
        found = "no run record" if not problems else f"no readable run record; the first: {problems[0]}"
        raise HistoryError(f"{folder}: {found}")
    ordered = sorted(runs, key=lambda run: (run.created, run.id))
    timings, properties = _series(ordered)
    return History(
        folder=str(folder),
        runs=tuple(PastRun(id=r.id, created=r.created, complete=r.complete, environment=r.environment) for r in ordered),
        problems=tuple(problems),
        timings=timings,
        properties=properties,
        equality=_equality(ordered),
    )


def _read_runs(files: list[Path]) -> tuple[list[_PartialRun], list[str]]:
    kept: dict[str, tuple[_PartialRun, Path]] = {}
    problems: list[str] = []
    for file in files:
        try:
            run = _read(file)
        except storage.RecordError as problem:
            problems.append(str(problem))
            continue
        if run.created.tzinfo is None:
            run = msgspec.structs.replace(run, created=run.created.replace(tzinfo=datetime.UTC))
        if run.id not in kept:
            kept[run.id] = run, file
            continue
        kept[run.id], left_out = _better((run, file), kept[run.id])
        if left_out:
            problems.append(left_out)
    return [run for run, _ in kept.values()], problems


def _read(file: Path) -> _PartialRun:
    data = storage.read_bytes(file)
    with contextlib.suppress(*storage.UNREADABLE):
        run = _DECODER.decode(data)
        if run.schema == record.SCHEMA_VERSION:
            return run
    # The slow way, which says what is wrong with it.
    return storage.decode(data, _PartialRun, file)


def _better(new: tuple[_PartialRun, Path], old: tuple[_PartialRun, Path]) -> tuple[tuple[_PartialRun, Path], str | None]:
    """The record to keep of two with the same id, and a line when they are not copies of each other."""
    if new[0].complete != old[0].complete:
        # One was copied while its run was still going, or before it was resumed: the complete one holds it all.
        return (new if new[0].complete else old), None
    if storage.read_bytes(new[1]) == storage.read_bytes(old[1]):
        return old, None
    return old, f"{new[1]}: run id {old[0].id} is also in {old[1]} with other contents; only that one counts"


def _series(
    runs: list[_PartialRun],
) -> tuple[dict[TimingKey, tuple[TimingPoint, ...]], dict[PropertyKey, tuple[Judgement, ...]]]:
    timings: dict[TimingKey, list[TimingPoint]] = defaultdict(list)
    properties: dict[PropertyKey, list[Judgement]] = defaultdict(list)
    for place, run in enumerate(runs):
        for t in run.timings:
            ratio = measured_ratio(t)
            if ratio is not None:
                timings[_timing_key(run, t)].append(TimingPoint(place, ratio.estimate))
        for v in run.verdicts:
            properties[PropertyKey(v.case, v.policy, v.property)].append(Judgement(place, v.outcome, v.reason))
    return {k: tuple(v) for k, v in timings.items()}, {k: tuple(v) for k, v in properties.items()}


def _equality(runs: list[_PartialRun]) -> dict[TimingKey, tuple[Judgement, ...]]:
    """A row whose job could not even be built names no baseline, so what shows it mended is its subject timed against any."""
    failed = [{_timing_key(run, t): t.reason for t in run.timings if t.verdict == "FAILED"} for run in runs]
    judged: dict[TimingKey, list[Judgement]] = {key: [] for keys in failed for key in keys}
    by_subject: dict[TimingKey, list[TimingKey]] = defaultdict(list)
    for key in judged:
        by_subject[_whatever_beside(key)].append(key)
    for place, run in enumerate(runs if judged else ()):
        for key, reason in failed[place].items():
            judged[key].append(Judgement(place, "failed", reason))
        timed = {_whatever_beside(_timing_key(run, t)) for t in run.timings if t.verdict != "FAILED"}
        for key in (key for subject in timed & by_subject.keys() for key in by_subject[subject]):
            if key not in failed[place]:
                judged[key].append(Judgement(place, "held", ""))
    return {key: tuple(points) for key, points in judged.items()}


def _timing_key(run: _PartialRun, t: _Timing) -> TimingKey:
    where = run.environment.machine, run.environment.threads
    return TimingKey(*where, t.case, t.workload, t.phase, t.shape, t.dtype, t.device, t.clock, t.baseline, t.subject)


def _whatever_beside(key: TimingKey) -> TimingKey:
    """``key`` for any baseline and by any clock."""
    return key._replace(baseline="", clock="")
