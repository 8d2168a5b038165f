"""Somebody breaks off a command: it stops at once, says what is kept, and loses nothing that was found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tqdm import tqdm

from cases import CASES
from harness import workers
from harness.cli.app import status
from harness.faults import CaseReport, Outcome, runner
from harness.pool import in_parallel, processes
from harness.validation.isolation import Isolated
from reports import storage


def breaking_off_after_the_first(honest: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """``honest`` with somebody who has seen enough after one result."""

    def results(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield next(honest(*args, **kwargs))
        raise KeyboardInterrupt

    return results


@pytest.mark.timeout(60)
def test_a_pool_that_is_left_in_the_middle_stops_what_it_was_doing() -> None:
    with processes(1) as pool:
        for _ in range(2):
            pool.schedule(signal.pause)
    assert not pool.active


BROKEN_OFF = """
import os, signal
from harness.interrupts import end_at_once, heed

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
end_at_once()
{then}
try:
    os.kill(os.getpid(), signal.{sent})
finally:
    print("put in order")
"""


@pytest.mark.parametrize(
    ("sent", "then", "status", "out", "err"),
    [
        ("SIGINT", "", 130, "", "harness: interrupted"),
        ("SIGINT", "heed()", -signal.SIGINT, "put in order", "KeyboardInterrupt"),
        ("SIGTERM", "", 130, "", "harness: interrupted"),
        ("SIGTERM", "heed()", -signal.SIGINT, "put in order", "KeyboardInterrupt"),
    ],
)
def test_an_interrupt_ends_a_command_at_once_until_there_is_something_to_put_in_order(
    sent: str, then: str, status: int, out: str, err: str
) -> None:
    """Libraries that are just being imported do not stand one."""
    script = BROKEN_OFF.format(sent=sent, then=then)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip().splitlines()[-1]) == (status, out, err)


def stay(path: str) -> None:
    """Say which process this is, and work on."""
    Path(path).write_text(str(os.getpid()))
    signal.pause()


LEFT_ALONE = """
import sys
from harness.pool import processes
from harness.tests.test_interrupted import stay

with processes(1) as pool:
    pool.schedule(stay, args=sys.argv[1:]).result()
"""


@pytest.mark.timeout(180)
def test_what_works_for_a_command_ends_with_it_however_it_ends(tmp_path: Path) -> None:
    said = tmp_path / "process"
    os.mkfifo(said)
    command = subprocess.Popen([sys.executable, "-c", LEFT_ALONE, str(said)])
    try:
        working = psutil.Process(int(said.read_text()))
    finally:
        command.kill()
        command.wait()
    working.wait(30.0)
    assert not working.is_running()


def lock_of_a_bar(_: int) -> str:
    list(tqdm((), disable=True))
    return type(tqdm.get_lock()).__name__


def test_a_progress_bar_in_a_worker_takes_no_semaphore_of_the_system() -> None:
    """One that is stopped would leave it behind."""
    with processes(1) as pool:
        assert [found for _, found in in_parallel(pool, lock_of_a_bar, (0,), seconds=60.0)] == ["RLock"]


TASKS = ("raises", "dies", "leaves", "ends")


def raised_or_done(task: str) -> str:
    if task == "raises":
        raise KeyError(task)
    if task in ("dies", "leaves"):
        os._exit(3 if task == "dies" else 0)
    return task


@pytest.mark.timeout(60)
def test_a_task_that_raises_or_dies_costs_its_own_result_and_not_the_rest() -> None:
    with processes(1) as pool:
        found = {task: str(result) for task, result in in_parallel(pool, raised_or_done, TASKS, seconds=30.0)}
    assert found == {
        "raises": "raised KeyError: 'raises'",
        "dies": "ended its process (exit status 3)",
        "leaves": "ended its process (exit status 0)",
        "ends": "ends",
    }


def test_an_interrupted_check_keeps_what_it_found_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--property", "revert", "--property", "deep copy", "--examples", "4", "--workers", "1")
    with monkeypatch.context() as somebody:
        somebody.setattr(workers, "run_tasks", breaking_off_after_the_first(workers.run_tasks))
        assert status(CASES, ["check", "opt", *few, "--out", str(tmp_path)]) == 130
    kept = f"what is done is kept: harness check --resume {tmp_path} goes on\nharness: interrupted\n"
    assert capsys.readouterr().err.endswith(kept)
    assert not (tmp_path / storage.RECORD_NAME).exists()
    assert status(CASES, ["check", "--resume", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert told.count("held") == 1
    assert "\ngoing on with what was begun by: harness" in told
    assert "\n1/1 opt · " in told
    assert {one.property for one in storage.read(tmp_path).verdicts} == {"revert", "deep copy"}


def test_an_interrupted_validation_reports_what_it_has_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all = Isolated.run_all
    monkeypatch.setattr(Isolated, "run_all", breaking_off_after_the_first(run_all))
    example = Path(__file__).parents[2] / "examples" / "cohere.py"
    asked = ("--profile", "quick", "--workers", "1", "--out", str(tmp_path))
    assert status(CASES, ["validate", str(example), *asked]) == 130
    told = capsys.readouterr()
    assert told.out.startswith("### CoherePolicy: HOLDS SO FAR, broken off\n")
    assert told.err.endswith("harness: interrupted\n")
    run = storage.read(tmp_path)
    assert not run.complete and [one.property for one in run.verdicts[:3]] == ["file", "case", "reading"]
    assert len(run.verdicts) == 4


def test_an_interrupted_exam_reports_the_parts_that_were_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_part(_: int, __: object, parts: list[runner.Part], *, seconds: float) -> Iterator[tuple[runner.Part, CaseReport]]:
        kill = Outcome(fault="M14 ignored", case="opt", status="killed", killer="model equality", examples=3)
        yield parts[0], CaseReport(case="opt", outcomes=(kill,), control=(), honest=(), faults=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "by_processes", one_part)
    assert status(CASES, ["faults", "opt"]) == 130
    told = capsys.readouterr()
    assert "broken off" in told.out
    assert "1 of 1 pair noticed" in told.out
    assert told.err.endswith("harness: interrupted\n")
