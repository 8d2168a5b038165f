"""What the limited processes do: each function here runs a policy's own code, and returns data only."""

from __future__ import annotations

import copy
import dataclasses
import time as clock
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from reports.record import Coverage, Timing

from ..case import Case
from ..check import Checked, check_property
from ..coverage import coverage
from ..evidence.script import with_policy
from ..faults.report import Outcome
from ..placed import giving_back
from ..profiles import PROFILES
from ..properties import BY_NAME
from ..properties.base import Property
from ..properties.captured import CAPTURED, captures
from ..search import quiet, see_shared
from ..trial import Replacer
from .derivation import Derivation
from .fit import Refused, refused_by
from .steps import READING, reads
from .subject import Subject

if TYPE_CHECKING:
    from ..faults.exam import Exam
    from ..faults.fault import Fault

FAULT_SECONDS = 1.0
"""What one seeded fault may take: one that is seen at all is seen in a fifth of it."""
DEAR_SECONDS = 10.0
"""What one may take that a dear property is expected to notice, in an example of seconds."""


@dataclass(frozen=True)
class Task:
    """One property of a subject."""

    subject: Subject
    prop: str
    profile: str
    seed: int


def applicable(subject: Subject) -> tuple[str, ...]:
    """Names of the properties that apply to the subject's case, and to what its policy claims."""
    case = subject.case
    names = (name for name, prop in BY_NAME.items() if prop.applies(case))
    return tuple(name for name in names if name != CAPTURED.name or _captures(case, subject.replacer))


def _captures(case: Case, replacer: Replacer) -> bool:
    """Whether the policy captures graphs; many have no business with them."""
    model = case.build(case.simplest)
    replacer(model)
    return captures(model)


def judge(task: Task) -> Checked:
    """The verdict on one property. Where the original of a derived case fails, it is asked again of what remains."""
    subject = task.subject
    with giving_back(subject.device):
        checked = _asked_again(task, _check(task, subject.case))
    return _with_policy(_with_line(checked, subject.path), subject)


def _asked_again(task: Task, checked: Checked) -> Checked:
    """``checked``, or where the original of a derived case raised in it what came of the first axis without which it does not."""
    derivation = task.subject.derivation
    if derivation is None or not checked.original_raised:
        return checked
    for axis in _suspects(derivation):
        again = _check(task, dataclasses.replace(task.subject, derivation=_without(derivation, axis)).case)
        if not again.original_raised:
            return _with_note(again, axis)
    return checked


def _check(task: Task, case: Case) -> Checked:
    subject = task.subject
    prop: Property = reads(subject.policy) if task.prop == READING else BY_NAME[task.prop]
    return check_property(
        prop,
        case,
        profile=PROFILES[task.profile],
        seed=task.seed,
        policy=subject.contents.policy,
        replacer=subject.replacer,
    )


def _suspects(derivation: Derivation) -> list[str]:
    """Axes that an original may not take everywhere, the likeliest first."""
    names = [axis.name for axis in derivation.axes if len(axis.values) > 1]
    return [one for one in ("window", "mask", "rope") if one in names] + [one for one in names if " " in one]


def _without(derivation: Derivation, name: str) -> Derivation:
    axes = tuple(
        dataclasses.replace(one, values=one.values[:1], claimed=False) if one.name == name else one for one in derivation.axes
    )
    return dataclasses.replace(derivation, axes=axes)


def _with_note(checked: Checked, axis: str) -> Checked:
    note = f" (Asked without {axis.removeprefix('config ')}, with which the original itself fails.)"
    verdict = msgspec.structs.replace(checked.verdict, statement=checked.verdict.statement + note)
    return dataclasses.replace(checked, verdict=verdict)


def _with_line(checked: Checked, path: str) -> Checked:
    """Where the policy's own code raised, the line of its file goes into the reason."""
    failure = checked.verdict.failure
    if failure is None or failure.traceback is None or f'"{path}", line ' not in failure.traceback:
        return checked
    line = failure.traceback.rpartition(f'"{path}", line ')[2].partition(",")[0]
    verdict = msgspec.structs.replace(checked.verdict, reason=f"{checked.verdict.reason} (line {line} of the policy)")
    return dataclasses.replace(checked, verdict=verdict)


def _with_policy(checked: Checked, subject: Subject) -> Checked:
    """The script that shows a failure shows it of the policy in the subject's file."""
    failure = checked.verdict.failure
    if failure is None or failure.script is None:
        return checked
    failure = msgspec.structs.replace(failure, script=with_policy(failure.script, subject.path, subject.contents.policy))
    return dataclasses.replace(checked, verdict=msgspec.structs.replace(checked.verdict, failure=failure))


def fit(subject: Subject) -> Refused:
    """What the subject's policy refuses in its case."""
    return refused_by(subject.policy, subject.case)


def time_subject(subject: Subject, budget: float, seed: int, memory: int | None, threads: int) -> tuple[Timing, ...] | str:
    """Time the subject's first workload that fits ``memory`` bytes, or where that is None its device, in float32, replaced
    against original, by so many threads; a string that says why not where there is none."""
    import torch

    from ..bench.jobs import Job
    from ..bench.rows import time_job
    from ..timing.ceilings import measure_ceilings
    from ..timing.light import held_against
    from ..timing.opening import open_device

    case = subject.case
    entry: Any = _Entry(case)
    torch.set_num_threads(threads)  # before there is a device, which times with as many as it meets
    device = open_device(subject.device)
    jobs = [Job(entry, workload, "float32") for workload in case.workloads]
    memory = device.free_bytes() if memory is None else memory
    job = next((job for job in jobs if job.memory_bytes <= memory), None)
    if job is None:
        least = min((job.memory_bytes for job in jobs), default=0) / 2**30
        return f"its workloads need {least:.0f} GiB of memory or more; allow it with --memory" if jobs else "no workload is known"
    light = measure_ceilings(device, dtypes=(torch.float32,), budget_seconds=1.2)
    rows = time_job(
        job,
        device=device,
        seconds_a_pair=budget / 4,
        seed=seed,
        replacer=subject.replacer,
    )
    return tuple(held_against(light, row) for row in rows)


@dataclass(frozen=True)
class _Entry:
    """A case for the bench, which knows cases by their entry in a list."""

    case: Case

    @property
    def name(self) -> str:
        return self.case.name

    def load(self) -> Case:
        return copy.copy(self.case)


@dataclass(frozen=True)
class Part:
    """A share of the seeded faults (every ``of``-th, from ``place``), to be tried on a subject for so many seconds."""

    subject: Subject
    place: int
    of: int
    seconds: float
    seed: int


def try_faults(part: Part) -> list[Outcome]:
    """What becomes of faults that are seeded into the subject's policy: as many as the time allows."""
    from ..faults.bank import FAULTS
    from ..faults.exam import Exam

    end = clock.monotonic() + part.seconds
    case, replacer = part.subject.case, part.subject.replacer
    outcomes = []
    with quiet():
        see_shared(case)
    with quiet(), case.surroundings():
        exam = Exam(case, profile=PROFILES["quick"], seed=part.seed, shrink=False, replacer=replacer, aimed=True)
        for fault in FAULTS[part.place :: part.of]:
            if clock.monotonic() > end:
                break
            outcome = _within(exam, fault, end)
            if outcome is not None:
                outcomes.append(outcome)
    return outcomes


def _within(exam: Exam, fault: Fault, end: float) -> Outcome | None:
    """The outcome of ``fault`` in the time that it may take; None where it does not apply, or its time was cut short."""
    from ..faults.exam import OutOfTime

    most = DEAR_SECONDS if any(prop.name in fault.expects for prop in exam.dear) else FAULT_SECONDS
    alone = clock.monotonic() + most
    exam.until = min(alone, end)
    try:
        return exam.try_fault(fault)
    except OutOfTime:
        if alone > end:
            return None
        return Outcome(fault=fault.id, case=exam.case.name, status="survived", message=f"not within {most:g} s")


def covered(subject: Subject, checked: list[Checked]) -> Coverage:
    """How often each value of each axis was drawn."""
    return coverage(subject.case, checked)
