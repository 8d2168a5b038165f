"""Validating one policy from a file: every stage in processes of its own, every stage with a verdict of its own.

The stages build on each other (the file, its case, reading a layer); where one fails for good, what depends on it is
recorded as not judged, with the reason, and nothing is lost. Properties depend on nothing but these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from reports.record import WRONG, Coverage, ErrorBudget, Run, Timing, Verdict

from ..faults.report import Outcome
from ..interrupts import heed
from ..pool import Lost
from ..watcher import NOBODY, Watcher
from . import work
from .file import Contents, PolicyNotNamed, UnusableFile, look
from .isolation import Isolated, Limits, isolated
from .models import NotDerivable
from .steps import READING, STATEMENT
from .subject import Known, Subject, subjects_in

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
    known: Known = ()
    """Cases that somebody wrote for layers."""
    device: str = "cpu"


@dataclass
class Validation:
    """What came of it. ``subjects`` are what was judged, by the names of their cases; ``unjudged`` says of other layer classes
    why there was no case for them. ``faults`` were tried, and ``timings`` measured, on the first."""

    policy: str
    file: str
    subjects: dict[str, Subject] = field(default_factory=dict)
    unjudged: tuple[str, ...] = ()
    verdicts: list[Verdict] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)
    timings: tuple[Timing, ...] = ()
    budgets: list[ErrorBudget] = field(default_factory=list)
    untimed: str = ""
    faults: list[Outcome] = field(default_factory=list)
    unexamined: str = ""
    interrupted: bool = False
    """Whether somebody broke it off: what it had found by then is here."""
    seconds: float = 0.0

    @property
    def failed(self) -> list[Verdict]:
        return [one for one in self.verdicts if one.outcome in WRONG]

    @property
    def case(self) -> str:
        """The name of the first case, or of the file where there is none yet."""
        return next(iter(self.subjects), self.file)


def validate(request: Request, watcher: Watcher = NOBODY) -> Validation:
    """Validate the policy of ``request``; never raises for anything that its file does. Raises ``PolicyNotNamed`` where the
    request does not say which of its policies is meant. An interrupt ends it, and it gives what it has found."""
    heed()
    start = time.perf_counter()
    done = Validation(policy=request.name or "?", file=Path(request.path).name)
    try:
        with isolated(request.limits, fresh=True) as fresh, isolated(request.limits, fresh=False) as quick:
            _Stages(request, fresh, quick, done, watcher).all()
    except KeyboardInterrupt:
        done.interrupted = True
        done.untimed = done.untimed or "broken off"
    done.seconds = time.perf_counter() - start
    return done


class _Stages:
    """The stages of one validation, in order. Processes are shared only by what has shown that it leaves them clean."""

    def __init__(self, request: Request, fresh: Isolated, quick: Isolated, done: Validation, watcher: Watcher) -> None:
        self.request, self.pool, self.quick, self.done, self.watcher = request, fresh, quick, done, watcher

    def all(self) -> None:
        contents = self._file()
        if contents is None:
            return
        self.done.policy = contents.policy
        statement = (
            "The layers that the policy replaces have a case: one beside it, one that is known, or one derived from a model."
        )
        found = self._stage("case", statement, subjects_in, self._path, contents, self.request.known, self.request.device)
        if found is None:
            return
        self.done.subjects, self.done.unjudged = dict(found.subjects), found.unjudged
        for name, subject in found.subjects:
            why_not = self._reading(name, subject)
            if why_not is None:
                subject = self._fit(name, subject)
            self._properties(name, subject, why_not)
        first = next(iter(self.done.subjects.values()))
        self._exam(first)
        self._time(first)

    @property
    def _path(self) -> str:
        return os.path.abspath(self.request.path)

    def _file(self) -> Contents | None:
        statement = "The file imports and holds the policy that is meant."
        return self._stage("file", statement, look, self._path, self.request.name)

    def _reading(self, name: str, subject: Subject) -> str | None:
        """Judge reading; why nothing further can be judged, or None."""
        start = time.perf_counter()
        try:
            checked = self.pool.run(work.judge, self._task(subject, READING))
        except Lost as loss:
            self._say(self._verdict(READING, STATEMENT, f"{loss}", case=name, seconds=time.perf_counter() - start))
            return f"reading a layer {loss}"
        self._say(checked.verdict)
        if checked.verdict.outcome == "held":
            self.pool = self.quick
            return None
        failure = checked.verdict.failure
        return "reading fails on the simplest layer" if failure is not None and not failure.off_simplest else None

    def _fit(self, name: str, subject: Subject) -> Subject:
        """``subject`` without what its policy refuses."""
        try:
            subject = replace(subject, refused=self.pool.run(work.fit, subject))
        except Lost:
            return subject
        self.done.subjects[name] = subject
        return subject

    def _properties(self, case: str, subject: Subject, why_not: str | None) -> None:
        from ..check import Checked
        from ..faults.exam import LEAST_SHARE
        from ..properties import BY_NAME

        wanted = self.request.properties or tuple(BY_NAME)
        if why_not is not None:
            self.done.verdicts += [
                self._verdict(name, BY_NAME[name].statement, f"not judged: {why_not}", case=case) for name in wanted
            ]
            return
        try:
            applicable = self.pool.run(work.applicable, subject)
        except Lost as loss:
            reason = f"telling which properties apply {loss}"
            self._say(self._verdict("properties", "The case is whole.", reason, case=case))
            return
        names = [name for name in applicable if name in wanted]
        # A property that is given hardly a share of the examples is one whose example takes seconds.
        longest_first = sorted(names, key=lambda name: (BY_NAME[name].share >= LEAST_SHARE, -BY_NAME[name].share))
        self.watcher.begin(f"checking {case}", len(names))
        drawn: list[Checked] = []
        before = len(self.done.verdicts)
        for task, result in self.pool.run_all(work.judge, [self._task(subject, name) for name in longest_first]):
            if isinstance(result, Checked):
                drawn.append(result)
                self._say(result.verdict)
            else:
                statement = BY_NAME[task.prop].statement
                self._say(self._verdict(task.prop, statement, f"{result}", case=case))
        self.done.verdicts[before:] = sorted(self.done.verdicts[before:], key=lambda one: names.index(one.property))
        if drawn:
            self.done.budgets += [one.budget for one in drawn if one.budget is not None]
            try:
                self.done.coverage.append(self.pool.run(work.covered, subject, drawn))
            except Lost as loss:
                self._say(self._verdict("coverage", "What was drawn is counted.", f"counting {loss}", case=case))

    def _exam(self, subject: Subject) -> None:
        """Seed faults into a policy that holds: how well could errors in it be seen?"""
        seconds = self.request.faults
        if seconds <= 0 or self.done.failed:
            return
        self.watcher.say(f"seeding faults for {seconds:g} s")
        parts = [work.Part(subject, place, FAULT_PARTS, seconds, self.request.seed) for place in range(FAULT_PARTS)]
        for _, result in self.quick.run_all(work.try_faults, parts, besides=seconds):
            if isinstance(result, Lost):
                self.done.unexamined = f"trying seeded faults {result}"
            else:
                self.done.faults += result

    def _time(self, subject: Subject) -> None:
        if self.request.budget <= 0:
            self.done.untimed = "not asked for"
        elif self.done.failed:
            self.done.untimed = "a policy that failed a check is not worth a time"
        else:
            self.watcher.say(f"timing for {self.request.budget:g} s")
            try:
                budget, memory, threads = self.request.budget, self.request.limits.memory, torch.get_num_threads()
                timed = self.pool.run(work.time_subject, subject, budget, self.request.seed, memory, threads, besides=budget)
                self.done.timings, self.done.untimed = ((), timed) if isinstance(timed, str) else (timed, "")
            except Lost as loss:
                self.done.untimed = f"timing {loss}"

    def _task(self, subject: Subject, prop: str) -> work.Task:
        return work.Task(subject, prop, self.request.profile, self.request.seed)

    def _stage(self, name: str, statement: str, function: Callable[..., Any], *args: Any) -> Any:
        """The result of a stage, or None with its verdict recorded."""
        start = time.perf_counter()
        try:
            result = self.pool.run(function, *args, raises=(UnusableFile, NotDerivable, PolicyNotNamed))
        except (UnusableFile, NotDerivable, Lost) as problem:
            reason = f"{problem}"
            if isinstance(problem, Lost):
                reason = f"importing the file {reason}" if name == "file" else f"preparing the case {reason}"
            self._say(self._verdict(name, statement, reason, seconds=time.perf_counter() - start))
            return None
        self._say(self._verdict(name, statement, "", outcome="held", seconds=time.perf_counter() - start))
        return result

    def _say(self, verdict: Verdict) -> None:
        self.done.verdicts.append(verdict)
        self.watcher.verdict(verdict)

    def _verdict(
        self, name: str, statement: str, reason: str, *, case: str | None = None, outcome: Any = "error", seconds: float = 0.0
    ) -> Verdict:
        return Verdict.without_examples(
            case=self.done.case if case is None else case,
            policy=self.done.policy,
            property=name,
            statement=statement,
            outcome=outcome,
            reason=reason,
            seconds=seconds,
            seed=self.request.seed,
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
        complete=not done.interrupted,
        seconds=done.seconds,
        environment=fingerprint(),
        verdicts=tuple(_of_the_policy(one, done, request.device) for one in done.verdicts),
        coverage=tuple(done.coverage),
        timings=done.timings,
        budgets=tuple(done.budgets),
    )


def _of_the_policy(verdict: Verdict, done: Validation, device: str) -> Verdict:
    """The verdict with the names of policy and case, which were not known yet when the file was looked at; verdicts of
    different devices are not compared."""
    case = done.case if verdict.case == done.file else verdict.case
    return msgspec.structs.replace(verdict, case=case, policy=done.policy + ("" if device == "cpu" else f", on {device}"))


def notes(done: Validation) -> Iterator[str]:
    """What a reader of the verdict has to know of the cases, a line each."""
    for line in done.unjudged:
        yield f"not judged: {line}"
    for subject in done.subjects.values():
        derivation = subject.derivation
        if subject.device != "cpu":
            yield f"models ran on {subject.device}"
        if subject.known is not None:
            yield f"judged on {subject.known.partition(':')[2]}, the case that this project has for the layer"
        if derivation is not None:
            drawn = [axis.name.removeprefix("config ") for axis in subject.case.axes if len(axis.values) > 1]
            yield f"case derived from {derivation.model.partition(':')[2]}; drawn: {', '.join(drawn)}"
        for axis, value, feature in subject.refused:
            yield f"refused by name: {axis.removeprefix('config ')}={value} ({feature})"
        for line in () if derivation is None else derivation.dropped:
            yield f"not drawn, because the original fails: {line}"
        for line in () if derivation is None else derivation.undrawn:
            yield f"not drawn, because nobody knows what it means: {line}"
