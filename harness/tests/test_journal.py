"""A run that is killed at any byte can be taken up again, with nothing lost and nothing doubled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES
from harness.journal import CeilingsDone, CheckDone, Contents, Journal, JournalError, Order, read
from harness.properties import PROPERTIES
from harness.registry import choose
from harness.run import _record
from harness.timing.light import SpeedOfLight
from reports.record import NullLane, Verdict
from reports.storage import JOURNAL_NAME
from reports.tests import synthetic


def order() -> Order:
    return Order(
        id="1",
        created="2026-01-01T00:00:00+00:00",
        command="harness check",
        profile="quick",
        seed=7,
        cases=("bert",),
    )


def verdict(name: str) -> CheckDone:
    return CheckDone(
        verdict=Verdict(
            case="bert",
            policy="P",
            property=name,
            statement="Something holds.",
            outcome="held",
            examples=3,
            layers_replaced=3,
            layers_expected=3,
            seconds=0.5,
            seed=7,
        ),
        drawn=[("heads", 2, 3), ("eps", 1e-12, 1), ("flag", True, 1), ("inner", None, 2)],
        pairs=[("eps", 1e-12, "heads", 2)],
    )


def test_what_was_appended_is_there_on_resuming(tmp_path: Path) -> None:
    journal = Journal.start(tmp_path, order())
    journal.append(verdict("a"))
    journal.append(verdict("b"))
    journal.close()
    again = Journal.resume(tmp_path)
    assert again.order == order()
    assert again.done == [verdict("a"), verdict("b")]


def test_verdicts_stand_in_the_order_of_cases_and_of_properties_whichever_came_first() -> None:
    names = ["unheard of", "cache", PROPERTIES[0].name, "available"]
    done = [
        CheckDone(verdict=synthetic.verdict(case, name, outcome="unavailable"))
        for case, name in [("opt", "cache"), *(("bert", name) for name in names)]
    ]
    entries = choose(CASES, ("bert", "opt"))
    run = _record(Contents(order=order(), done=done, seconds=1.0), entries, complete=True)
    assert [(one.case, one.property) for one in run.verdicts] == [
        ("bert", PROPERTIES[0].name),
        ("bert", "cache"),
        ("bert", "unheard of"),
        ("bert", "available"),
        ("opt", "cache"),
    ]


def test_a_run_that_goes_on_counts_the_alarms_of_each_time() -> None:
    """What was timed the first time stands beside what is timed the second."""
    lanes = [NullLane(comparisons=3, alarms=3, smallest_effect=None), NullLane(comparisons=4, alarms=0, smallest_effect=0.02)]
    light = SpeedOfLight(device="cpu", gemm_flops={}, stream_bytes={1: 1.0}, warnings=())
    order = Order(id="a", created="", command="", profile="bench", seed=0, cases=(), bench=True)
    done: list[Any] = [CeilingsDone(light=light, null_lane=one) for one in lanes]
    assert _record(Contents(order, done), (), complete=True).null_lane == NullLane(comparisons=7, alarms=3, smallest_effect=0.02)


def test_a_run_that_somebody_is_at_work_on_is_not_resumed_and_not_touched(tmp_path: Path) -> None:
    journal = Journal.start(tmp_path, order())
    journal.append(verdict("a"))
    with pytest.raises(JournalError, match="another process is at work on this run"):
        Journal.resume(tmp_path)
    journal.append(verdict("b"))
    journal.close()
    assert Journal.resume(tmp_path).done == [verdict("a"), verdict("b")]


def test_a_run_that_goes_on_counts_the_seconds_that_it_had_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 140.0])  # begun; the order; the first verdict
    monkeypatch.setattr("harness.journal.time", SimpleNamespace(monotonic=lambda: next(clock)))
    journal = Journal.start(tmp_path, order())
    journal.append(verdict("a"))
    journal.close()
    clock = iter([7.0, 9.5])  # taken up again, on a machine that was started in between; the second
    again = Journal.resume(tmp_path)
    again.append(verdict("b"))
    assert again.contents.seconds == read(tmp_path).seconds == 42.5


@settings(max_examples=60)
@given(cut=st.integers(0, 2000))
def test_a_journal_cut_anywhere_keeps_every_whole_entry(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    journal = Journal.start(folder, order())
    first = (folder / JOURNAL_NAME).stat().st_size
    journal.append(verdict("a"))
    second = (folder / JOURNAL_NAME).stat().st_size
    journal.append(verdict("b"))
    journal.close()
    data = (folder / JOURNAL_NAME).read_bytes()
    kept = data[: min(first + cut, len(data))]
    (folder / JOURNAL_NAME).write_bytes(kept)
    again = Journal.resume(folder)
    assert again.done == [verdict("a"), verdict("b")][: (len(kept) >= second) + (len(kept) >= len(data))]
    again.append(verdict("c"))
    again.close()
    assert Journal.resume(folder).done[-1] == verdict("c")


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no run was begun"):
        Journal.resume(tmp_path)


def test_a_second_run_does_not_start_in_an_unfinished_one(tmp_path: Path) -> None:
    Journal.start(tmp_path, order()).close()
    with pytest.raises(JournalError, match="--resume"):
        Journal.start(tmp_path, order())


def test_a_line_that_is_damaged_gives_up_nothing_that_stands_behind_it(tmp_path: Path) -> None:
    journal = Journal.start(tmp_path, order())
    for name in ("a", "b", "c"):
        journal.append(verdict(name))
    journal.close()
    path = tmp_path / JOURNAL_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], lines[2].replace(b"held", b"hel\xff"), *lines[3:]])
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match="line 3 is damaged, or another version's"):
        Journal.resume(tmp_path)
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert Journal.resume(tmp_path).done == [verdict("a"), verdict("c")]


def test_a_journal_with_nothing_in_it_is_no_run(tmp_path: Path) -> None:
    """Whoever wrote it died before the first entry."""
    (tmp_path / JOURNAL_NAME).touch()
    with pytest.raises(JournalError, match="no run was begun"):
        Journal.resume(tmp_path)
    Journal.start(tmp_path, order()).close()
    assert Journal.resume(tmp_path).order == order()


def test_a_journal_without_a_first_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text("not json\n")
    with pytest.raises(JournalError, match="damaged"):
        Journal.resume(tmp_path)
