"""Checks in processes: what happens to one is no matter of the others."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

from cases import CASES
from harness.pool import Lost, in_parallel, processes
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
    assert found[broken.path].reason == "the check raised ModuleNotFoundError: No module named 'harness.a_page_that_nobody_wrote'"


def heeded(number: int) -> bool:
    """Whether an interrupt would reach this process."""
    return signal.Signals(number) not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_interrupt_is_for_who_began_the_processes_and_not_for_them() -> None:
    """One that is still importing would print a traceback."""
    with processes(1) as pool:
        answers = dict(in_parallel(pool, heeded, [signal.SIGINT, signal.SIGTERM], seconds=60))
    assert answers == {signal.SIGINT: False, signal.SIGTERM: True}
    assert heeded(signal.SIGINT)


def left(number: int) -> int:
    """A way out of the program, where the number is one."""
    if number == 1:
        raise SystemExit(3)
    return number


def killed(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_check_that_is_killed_costs_its_own_result_alone_whatever_the_signal() -> None:
    unnamed = signal.SIGRTMIN + 1
    with processes(1) as pool:
        answers = dict(in_parallel(pool, killed, [signal.SIGKILL, unnamed], seconds=60))
    assert {number: str(loss) for number, loss in answers.items()} == {
        signal.SIGKILL: "ended its process (killed by SIGKILL)",
        unnamed: f"ended its process (killed by signal {unnamed})",
    }


def test_a_check_that_leaves_the_program_costs_its_own_result_alone() -> None:
    with processes(1) as pool:
        answers = dict(in_parallel(pool, left, [0, 1, 2], seconds=60))
    loss = answers.pop(1)
    assert isinstance(loss, Lost)
    assert (str(loss), answers) == ("left by SystemExit", {0: 0, 2: 2})


def waits(event: str) -> None:
    """For something that never comes."""
    getattr(threading, event)().wait()


def test_a_check_that_waits_for_ever_where_no_code_is_somebodys_own_is_stopped_all_the_same() -> None:
    with processes(1) as pool:
        (loss,) = dict(in_parallel(pool, waits, ["Event"], seconds=2)).values()
    assert str(loss) == "did not end within 2 s, and was stopped"
