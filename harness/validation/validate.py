"""Validating one policy from a file: every stage in processes of its own, every stage with a verdict of its own.

The stages build on each other (the file, its case, reading a layer); where one fails for good, what depends on it is
recorded as not judged, with the reason, and nothing is lost. Properties depend on nothing but these.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from reports.record import Coverage, ErrorBudget, Run, Timing, Verdict

from ..faults.report import Outcome
from . import work
from .derivation import Derivation
from .file import Contents, UnusableFile, look
from .isolation import Isolated, Limits, Lost, isolated
from .models import NotDerivable

FAULT_PARTS = 2
"""Tasks into which the faults are divided."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to validate and how deep. ``faults`` and ``budget`` are the seconds for seeded faults and for timing; 0 leaves
    them out. ``properties`` limits the check to those of these names."""

    path: str
    name: str | None = None
    profile: str = "regression"
    seed: int = 0
    budget: float = 4.0
    faults: float = 4.0
    limits: Limits = field(default_factory=Limits)
    properties: tuple[str, ...] | None = None
    known: work.Known = ()
    """Cases for layers of which none can be derived."""


@dataclass
class Validation:
    """What came of it. ``derivation`` tells what was drawn and what could not be, where no case was given."""

    policy: str = "?"
    case: str = "?"
    verdicts: list[Verdict] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)
    timings: tuple[Timing, ...] = ()
    derivation: Derivation | None = None
    known: str | None = None
    """Path of the case that was known for the layer."""
    budgets: list[ErrorBudget] = field(default_factory=list)
    untimed: str = ""
    faults: list[Outcome] = field(default_factory=list)
    unexamined: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> list[Verdict]:
        return [one for one in self.verdicts if one.outcome not in ("held", "unavailable")]


Progress = Callable[[Verdict], None]


def validate(request: Request, progress: Progress) -> Validation:
    """Validate the policy of ``request``; never raises for anything that its file does."""
    start = clock.perf_counter()
    done = Validation(policy=request.name or "?", case=Path(request.path).name)
    with isolated(request.limits, fresh=True) as fresh, isolated(request.limits, fresh=False) as quick:
        _Stages(request, fresh, quick, done, progress).all()
    done.seconds = clock.perf_counter() - start
    return done


class _Stages:
    """The stages of one validation, in order. Processes are shared only by what has shown that it leaves them clean."""

    def __init__(self, request: Request, fresh: Isolated, quick: Isolated, done: Validation, progress: Progress) -> None:
        self.request, self.pool, self.quick, self.done, self.progress = request, fresh, quick, done, progress

    def all(self) -> None:
        contents = self._file()
        if contents is None:
            return
        self.done.policy = contents.policy
        subject = self._case(contents)
        if subject is None:
            return
        why_not = self._reading(subject)
        if not self.done.failed and subject.derivation is not None:
            subject = self._fit(subject)
        self._properties(subject, why_not)
        self._exam(subject)
        self._time(subject)

    def _file(self) -> Contents | None:
        statement = "The file imports and holds the policy that is meant."
        return self._stage("file", statement, look, os.path.abspath(self.request.path), self.request.name)

    def _case(self, contents: Contents) -> work.Subject | None:
        path = os.path.abspath(self.request.path)
        if contents.case is not None:
            subject = work.Subject(path, contents)
            name = self._stage("case", "The case beside the policy builds its simplest model.", work.simplest, subject)
        else:
            statement = "A case can be derived from the layer's model and configuration, or is known."
            found = self._stage("case", statement, work.case_for, contents, self.request.known)
            if isinstance(found, str):
                subject = work.Subject(path, contents, known=found)
                self.done.known = found
                name = self._stage("known case", "The case known for the layer builds a model.", work.simplest, subject)
            else:
                subject = work.Subject(path, contents, found)
                name = None if found is None else found.name
        if name is None:
            return None
        self.done.case = name
        return subject

    def _reading(self, subject: work.Subject) -> str | None:
        """Judge reading; why nothing further can be judged, or None."""
        checked = self._judged(self._task(subject, work.READING))
        if checked is None:
            return f"reading a layer {self.done.verdicts[-1].reason}"
        if checked.verdict.outcome == "held":
            self.pool = self.quick
        return None

    def _fit(self, subject: work.Subject) -> work.Subject:
        try:
            derivation = self.pool.run(work.fit, subject)
        except Lost:
            return subject
        self.done.derivation = derivation
        return replace(subject, derivation=derivation)

    def _properties(self, subject: work.Subject, why_not: str | None) -> None:
        from ..check import Checked
        from ..faults.exam import LEAST_SHARE
        from ..properties import BY_NAME

        wanted = self.request.properties or tuple(BY_NAME)
        if why_not is not None:
            for name in wanted:
                self._say(_verdict(self.done, self.request, name, BY_NAME[name].statement, f"not judged: {why_not}"))
            return
        try:
            applicable = self.pool.run(work.applicable, subject)
        except Exception as problem:
            reason = f"which properties apply cannot be told: {problem}"
            self._say(_verdict(self.done, self.request, "properties", "The case is whole.", reason))
            return
        names = [name for name in applicable if name in wanted]
        # A property that is given hardly a share of the examples is one whose example takes seconds.
        longest_first = sorted(names, key=lambda name: (BY_NAME[name].share >= LEAST_SHARE, -BY_NAME[name].share))
        drawn: list[Checked] = []
        found: dict[str, Verdict] = {}
        for task, result in self.pool.run_all(work.judge, [self._task(subject, name) for name in longest_first]):
            if isinstance(result, Checked):
                drawn.append(result)
                found[task.prop] = result.verdict
            else:
                found[task.prop] = _verdict(self.done, self.request, task.prop, BY_NAME[task.prop].statement, f"{result}")
            self.progress(found[task.prop])
        self.done.verdicts += [found[name] for name in names]
        if drawn:
            self.done.coverage = [self.pool.run(work.covered, subject, drawn)]
            self.done.budgets = [one.budget for one in drawn if one.budget is not None]

    def _exam(self, subject: work.Subject) -> None:
        """Seed faults into a policy that holds: how well could errors in it be seen?"""
        seconds = self.request.faults
        if seconds <= 0 or self.done.failed:
            return
        parts = [work.Part(subject, place, FAULT_PARTS, seconds, self.request.seed) for place in range(FAULT_PARTS)]
        for _, result in self.quick.run_all(work.try_faults, parts):
            if isinstance(result, Lost):
                self.done.unexamined = f"trying seeded faults {result}"
            else:
                self.done.faults += result

    def _time(self, subject: work.Subject) -> None:
        if self.request.budget <= 0:
            self.done.untimed = "not asked for"
        elif self.done.failed:
            self.done.untimed = "a policy that failed a check is not worth a time"
        else:
            try:
                timed = self.pool.run(work.time, subject, self.request.budget, self.request.seed, self.request.limits.memory)
                self.done.timings, self.done.untimed = ((), timed) if isinstance(timed, str) else (timed, "")
            except Lost as loss:
                self.done.untimed = f"timing {loss}"

    def _task(self, subject: work.Subject, prop: str) -> work.Task:
        return work.Task(subject, prop, self.request.profile, self.request.seed)

    def _judged(self, task: work.Task) -> Any:
        statement = "The policy matches a layer, reads it (or refuses it by name) and changes nothing."
        try:
            checked = self.pool.run(work.judge, task)
        except Lost as loss:
            self._say(_verdict(self.done, self.request, task.prop, statement, f"{loss}"))
            return None
        self._say(checked.verdict)
        return checked

    def _stage(self, name: str, statement: str, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a stage, or None with its verdict recorded."""
        start = clock.perf_counter()
        try:
            result = self.pool.run(function, *args)
        except (UnusableFile, NotDerivable, Lost) as problem:
            reason = f"{problem}"
            if isinstance(problem, Lost):
                reason = f"importing the file {reason}" if name == "file" else f"preparing the case {reason}"
            self._say(_verdict(self.done, self.request, name, statement, reason))
            return None
        seconds = clock.perf_counter() - start
        self._say(_verdict(self.done, self.request, name, statement, "", outcome="held", seconds=seconds))
        return result

    def _say(self, verdict: Verdict) -> None:
        self.done.verdicts.append(verdict)
        self.progress(verdict)


def _verdict(
    done: Validation,
    request: Request,
    name: str,
    statement: str,
    reason: str,
    *,
    outcome: Any = "error",
    seconds: float = 0.0,
) -> Verdict:
    return Verdict(
        case=done.case,
        policy=done.policy,
        property=name,
        statement=statement,
        outcome=outcome,
        reason=reason,
        examples=0,
        layers_replaced=0,
        layers_expected=0,
        seconds=seconds,
        seed=request.seed,
    )


def record(request: Request, done: Validation, *, run_id: str, created: str, command: str) -> Run:
    """The run record of a validation."""
    from ..environment import fingerprint

    return Run(
        id=run_id,
        created=created,
        command=command,
        profile=request.profile,
        seed=request.seed,
        complete=True,
        seconds=done.seconds,
        environment=fingerprint(accelerator=False),
        verdicts=tuple(msgspec.structs.replace(one, case=done.case, policy=done.policy) for one in done.verdicts),
        coverage=tuple(done.coverage),
        timings=done.timings,
        budgets=tuple(done.budgets),
    )


def notes(done: Validation) -> Iterator[str]:
    """What a reader of the verdict has to know of a derived case, a line each."""
    derivation = done.derivation
    if done.known is not None:
        yield f"judged on {done.known.partition(':')[2]}, the case that this project has for the layer"
    if derivation is None:
        return
    drawn = [axis.name.removeprefix("config ") for axis in derivation.axes if len(axis.values) > 1]
    yield f"case derived from {derivation.model.partition(':')[2]}; drawn: {', '.join(drawn)}"
    for axis, value, feature in derivation.refused:
        yield f"refused by name: {axis.removeprefix('config ')}={value} ({feature})"
    for line in derivation.dropped:
        yield f"not drawn, because the original fails: {line}"
    for line in derivation.undrawn:
        yield f"not drawn, because nobody knows what it means: {line}"
