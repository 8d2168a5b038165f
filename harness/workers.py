"""Checks in parallel: one process a core, each judging one property of one case at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.record import Verdict

from .check import Checked, check_property
from .placed import giving_back, placed
from .plans import by_plan
from .pool import Lost, by_processes
from .profiles import Profile
from .properties import BY_NAME
from .registry import CaseEntry

TASK_SECONDS = 3600.0
"""A check that takes longer is taken to hang."""


@dataclass(frozen=True)
class Task:
    """One property of one case, to the depth of a profile."""

    entry: CaseEntry
    prop: str
    profile: Profile
    seed: int
    plan: str = "auto"
    device: str = "cpu"

    @property
    def policy(self) -> str:
        """The policy's name, with the plan where one was asked for and the device where it is not the CPU: verdicts by
        different plans, or of different devices, are not compared."""
        plan = "" if self.plan == "auto" else f", plan {self.plan}"
        return self.entry.policy_class + plan + ("" if self.device == "cpu" else f", on {self.device}")


def run_task(task: Task) -> Checked:
    """Judge one task in this process."""
    with giving_back(task.device), by_plan(task.plan, task.device) as replacer:
        return check_property(
            BY_NAME[task.prop],
            placed(task.entry.load(), task.device),
            profile=task.profile,
            seed=task.seed,
            policy=task.policy,
            replacer=replacer,
        )


def run_tasks(tasks: list[Task], *, workers: int) -> Iterator[tuple[Task, Checked]]:
    """Each task with its verdict, as they finish."""
    for task, result in by_processes(workers, run_task, tasks, seconds=TASK_SECONDS):
        yield task, _no_verdict(task, f"the check {result}") if isinstance(result, Lost) else result


def _no_verdict(task: Task, reason: str) -> Checked:
    prop = BY_NAME[task.prop]
    verdict = Verdict.without_examples(
        case=task.entry.name,
        policy=task.policy,
        property=prop.name,
        statement=prop.statement,
        outcome="error",
        reason=reason,
        seed=task.seed,
    )
    return Checked(verdict)
