"""Checks in processes: what happens to one is no matter of the others."""

from __future__ import annotations

import dataclasses

from cases import CASES
from harness.profiles import depth
from harness.registry import choose
from harness.workers import Task, run_tasks


def test_a_check_that_raises_costs_its_own_verdict_alone() -> None:
    (entry,) = choose(CASES, ["opt"])
    broken = dataclasses.replace(entry, path="harness.a_page_that_nobody_wrote:Case")
    tasks = [Task(one, "model equality", depth("quick", 2), 0) for one in (broken, entry)]
    found = {task.entry.path: checked.verdict for task, checked in run_tasks(tasks, workers=1)}
    assert found[entry.path].outcome == "held"
    assert found[broken.path].outcome == "error"
    assert found[broken.path].reason == "ModuleNotFoundError: No module named 'harness.a_page_that_nobody_wrote'"
