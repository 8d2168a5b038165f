"""The run record: written whole, read strictly."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import record, storage
from reports.tests import strategies, synthetic


@given(run=strategies.runs())
def test_any_run_reads_back_as_it_was_written(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    storage.write(run, folder)
    assert storage.read(folder) == run
    assert storage.read(folder / storage.RECORD_NAME) == run


@pytest.mark.parametrize(
    ("value", "kept"),
    [(float("nan"), record.NOT_FINITE), (float("inf"), record.NOT_FINITE), (float("-inf"), -record.NOT_FINITE)],
)
def test_an_error_that_is_not_finite_is_recorded_as_the_largest_figure(tmp_path, value, kept):
    failure = msgspec.structs.replace(
        synthetic.failure(), stages=(record.Stage(name="attention", own_error=value, inherited_error=0.0),)
    )
    storage.write(synthetic.run(verdicts=(synthetic.verdict(outcome="failed", worst_error=value, failure=failure),)), tmp_path)
    verdict = storage.read(tmp_path).verdicts[0]
    assert verdict.worst_error == kept
    assert verdict.failure.stages[0].own_error == kept


def test_a_full_disk_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    storage.write(synthetic.run("old"), tmp_path)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left"):
        storage.write(synthetic.run("new"), tmp_path)
    assert storage.read(tmp_path).id == "old"
    assert os.listdir(tmp_path) == [storage.RECORD_NAME]


def test_a_record_is_readable_by_whoever_the_umask_allows(tmp_path):
    mask = os.umask(0o022)
    try:
        path = storage.write(synthetic.run(), tmp_path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644


@given(cut=st.integers(0, 2000))
def test_a_record_cut_short_anywhere_is_refused_in_one_line_with_its_path(cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = storage.write(synthetic.run(timings=(), verdicts=()), folder)
    data = path.read_bytes()
    path.write_bytes(data[: cut % len(data.rstrip())])
    with pytest.raises(storage.RecordError) as problem:
        storage.read(folder)
    assert str(problem.value).startswith(f"{path}: ")
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'{"schema": "1"}', b"\xff\xfe", b'{"schema": 1, "x": ' + b"[" * 100_000, b"[" * 100_000],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, data):
    (tmp_path / storage.RECORD_NAME).write_bytes(data)
    with pytest.raises(storage.RecordError, match=r"not a run record|damaged run record") as problem:
        storage.read(tmp_path)
    assert "\n" not in str(problem.value)


def test_a_foreign_version_is_refused_by_naming_both_versions(tmp_path):
    (tmp_path / storage.RECORD_NAME).write_text('{"schema": 7, "anything": true}')
    with pytest.raises(
        storage.RecordError,
        match=r"record version 7, this harness reads version 1; use the harness that wrote it, or run again",
    ):
        storage.read(tmp_path)


def test_a_missing_record_is_refused_with_its_path(tmp_path):
    with pytest.raises(storage.RecordError, match=r"run.json: no run record can be read here"):
        storage.read(tmp_path)


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path):
    (tmp_path / storage.JOURNAL_NAME).touch()
    with pytest.raises(
        storage.RecordError, match=f"this run is not finished; the command that began it goes on with --resume {tmp_path}"
    ):
        storage.read(tmp_path)


@pytest.mark.parametrize("change", [{"seed": "3"}, {"unheard": 1}, {"verdicts": [{}]}, {"complete": None}])
def test_a_wrong_or_unknown_field_is_refused_by_its_place(tmp_path, change):
    path = storage.write(synthetic.run(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(storage.RecordError, match=r"damaged run record"):
        storage.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"verdicts": (synthetic.verdict(outcome="unavailable"),)}, True),
        ({"verdicts": (synthetic.verdict(outcome="unavailable"),), "timings": ()}, False),
        ({"verdicts": (), "timings": ()}, False),
        ({"verdicts": ()}, True),
        ({"verdicts": (synthetic.verdict(outcome="vacuous"),)}, False),
        ({"timings": (synthetic.timing(verdict="FAILED"),)}, False),
    ],
)
def test_a_run_is_ok_when_something_was_judged_all_of_it_held_and_nothing_timed_was_wrong(changes, ok):
    assert synthetic.run(**changes).ok is ok


def test_the_reports_room_imports_neither_torch_nor_the_other_rooms():
    names = ["record", "wording", "summary", "chart", "compare", "history", "trends", "html", "markdown", "terminal"]
    program = f"import sys, {', '.join(f'reports.{name}' for name in names)}\nprint(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {
        "torch",
        "transformers",
        "diffusers",
        "numpy",
        "scipy",
        "ruptures",
        "policies",
        "harness",
        "cases",
    }


def test_what_cannot_be_written_is_named_and_not_what_is_written_first(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        storage.write_atomically(tmp_path / "nowhere" / "page.html", b"")
    assert found.value.filename == str(tmp_path / "nowhere" / "page.html")


def test_a_run_is_found_by_its_folder_or_id_among_those_here(tmp_path, monkeypatch):
    """Reports name the run by its id."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        storage.write(synthetic.run(name), tmp_path / "runs" / f"folder of {name}")
    storage.write(synthetic.run("deep"), tmp_path / "runs" / "nightly" / "2026-11-28")
    assert storage.find(Path("second")) == Path("runs/folder of second")
    assert storage.find(Path("deep")) == Path("runs/nightly/2026-11-28")
    assert storage.find(Path("runs/folder of first")) == storage.find(Path("folder of first")) == Path("runs/folder of first")
    with pytest.raises(storage.RecordError, match=r"third: no such folder, and no run in runs/ has this id"):
        storage.find(Path("third"))
