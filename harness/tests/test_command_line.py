"""The command line as its users meet it: exit status, records, pages, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cases import CASES
from harness.drift import compare
from harness.journal import CheckDone, Journal
from harness.properties import BY_NAME
from harness.timing import selftest
from harness.validation import validate as validating
from harness.validation.validate import Request, Validation
from reports import storage
from reports.tests import synthetic

from .command_line import begun, harness, one_line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small finished run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    asked = ("--property", "model equality", "--property", "cache", "--property", "hooks")
    assert harness("check", "gptj", "--profile", "quick", *asked, "--workers", "1", "--out", folder) == 0
    return folder


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness() == 0
    assert "harness run bert --profile quick" in capsys.readouterr().out


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("--version") == 0
    assert capsys.readouterr().out == f"harness {version('replace-policy-harness')}\n"


def test_a_plan_that_was_asked_for_is_named_in_the_record(tmp_path: Path) -> None:
    few = ("--profile", "quick", "--property", "revert", "--examples", "4", "--workers", "1", "--out", tmp_path)
    assert harness("check", "llama", "--plan", "packed", *few) == 0
    (verdict,) = storage.read(tmp_path / "run.json").verdicts
    assert verdict.policy.endswith("Policy, plan packed")


def test_properties_are_listed_with_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("list", "unet", "--properties") == 0
    named = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert "captured graphs" in named and "cache" not in named
    assert harness("list", "bert", "--properties", "--json") == 0
    assert {"name": "call order", "statement": BY_NAME["call order"].statement} in json.loads(capsys.readouterr().out)[
        "properties"
    ]


def test_only_the_properties_that_are_named_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        harness("check", "opt", "--property", "cache", "--property", "revert", "--examples", 20, "--out", tmp_path / "run") == 0
    )
    assert {one.property for one in storage.read(tmp_path / "run").verdicts} == {"cache", "revert"}


def test_a_run_that_is_not_finished_is_reported_and_compared_as_far_as_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = begun(tmp_path / "run", cases=("opt", "bert"))
    assert harness("check", "opt", "--property", "revert", "--examples", 20, "--out", tmp_path / "whole") == 0
    whole = storage.read(tmp_path / "whole")
    journal = Journal.resume(folder)
    journal.append(CheckDone(verdict=whole.verdicts[0]))
    capsys.readouterr()
    assert harness("report", folder, "--format", "text") == 0  # while somebody is at work on it
    told = capsys.readouterr().out
    assert "The one verdict so far held, but the run was cut short" in told
    journal.close()
    assert harness("report", folder) == 0
    assert "was cut short" in (folder / "index.html").read_text()
    assert harness("compare", tmp_path / "whole", folder) == 0
    assert "The head run was cut short" in capsys.readouterr().out
    assert not (folder / storage.RECORD_NAME).exists()
    assert Journal.resume(folder).done == [CheckDone(verdict=whole.verdicts[0])]


def test_a_run_goes_on_as_it_was_begun_whatever_command_resumes_it(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", examples=20, properties=("revert",))
    assert harness("run", "--resume", folder) == 0
    finished = storage.read(folder)
    assert [one.property for one in finished.verdicts] == ["revert"]
    assert not finished.timings


def test_a_finished_run_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / storage.RECORD_NAME).read_bytes()
    assert harness("check", "gptj", "--out", finished) == 2
    assert "finished run already" in one_line(capsys)
    assert (finished / storage.RECORD_NAME).read_bytes() == before


def test_two_validations_into_one_folder_keep_what_each_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def beside_another(request: Request, progress: Any) -> Validation:
        storage.write(synthetic.run("another"), tmp_path / "run")
        return Validation(policy="Mine", file="mine.py")

    monkeypatch.setattr(validating, "validate", beside_another)
    harness("validate", __file__, "--out", tmp_path / "run")
    mine, its = sorted(tmp_path.iterdir(), key=lambda folder: len(folder.name), reverse=True)
    assert (storage.read(its).id, its.name) == ("another", "run")
    assert f"Report: {mine / 'index.html'}" in capsys.readouterr().out


def test_a_validation_takes_no_folder_that_holds_a_run(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for folder, word in ((finished, "finished run already"), (begun(tmp_path / "run"), "unfinished run")):
        assert harness("validate", __file__, "--out", folder) == 2
        assert word in one_line(capsys)


def test_a_run_leaves_a_record_and_a_page(finished: Path) -> None:
    run = storage.read(finished)
    assert run.complete
    assert run.ok
    assert {one.case for one in run.verdicts} == {"gptj"}
    assert {path.name for path in finished.iterdir()} == {"run.json", "index.html"}


def test_every_claimed_axis_is_counted_in_the_record(finished: Path) -> None:
    (coverage,) = storage.read(finished).coverage
    assert set(coverage.axes) >= {"heads", "rotary", "padding", "layers"}
    totals = {sum(counts.values()) for counts in coverage.axes.values()}
    assert len(totals) == 1
    assert totals.pop() > 0


def test_report_writes_the_page_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "index.html").unlink()
    assert harness("report", finished) == 0
    assert (finished / "index.html").read_text().startswith("<!")
    assert harness("report", finished, "--format", "md") == 0
    assert "gptj" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["now", "run-now"])
def test_a_run_named_without_its_folder_is_reported_where_it_lies_and_against_those_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write(synthetic.run("run-before", created="2026-03-13T04:10:00Z"), tmp_path / "runs" / "before")
    storage.write(synthetic.run("run-now"), tmp_path / "runs" / "now")
    assert harness("report", name) == 0
    assert capsys.readouterr().out == f"report: {Path('runs/now/index.html')}\n"
    assert "From run run-before" in Path("runs/now/index.html").read_text()


@pytest.mark.parametrize("format", ["md", "text"])
def test_a_printed_report_names_the_folder_in_its_commands(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = synthetic.verdict(outcome="failed", failure=synthetic.failure())
    storage.write(synthetic.run(verdicts=(failed,)), tmp_path / "here")
    assert harness("report", tmp_path / "here", "--format", format) == 0
    assert "/here 'bloom/layer equality/1'" in capsys.readouterr().out


def test_a_mistyped_format_gets_a_suggestion_and_prints_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, hint in (
        (("report", finished, "--format", "htlm"), "did you mean html?"),
        (("compare", finished, finished, "--format", "txt"), "did you mean text?"),
        (("compare", finished, finished, "--format", "html"), "there are: text md"),
    ):
        assert harness(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith(f": no format is called {arguments[-1]!r}; {hint}\n")


@pytest.mark.parametrize(("command", "new"), [("check", True), ("run", True), ("validate", False), ("faults", False)])
def test_help_says_a_new_seed_only_where_nightly_takes_one(command: str, new: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness(command, "--help") == 0
    assert ("nightly: a new one" in " ".join(capsys.readouterr().out.split())) is new


def test_comparing_a_run_with_itself_finds_nothing(finished: Path) -> None:
    assert harness("compare", finished, finished) == 0


def test_a_comparison_for_scripts_holds_every_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run in (("base", synthetic.full_run()), ("head", synthetic.full_run(faulty=True))):
        storage.write(run, tmp_path / name)
    assert harness("compare", tmp_path / "base", tmp_path / "head", "--json") == 1
    assert json.loads(capsys.readouterr().out)["changes"][0]["kind"] == "wrong"


def test_comparing_with_nothing_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("compare", finished, tmp_path) == 2
    assert str(tmp_path) in one_line(capsys)


def test_list_names_every_case_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["cases"]
    assert [row["case"] for row in rows] == [entry.name for entry in CASES]
    assert all(row["replaces"] and (row["available"] or row["unavailable"]) for row in rows)


def test_drift_tells_a_layer_that_no_policy_lists_from_one_whose_library_is_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = compare.read_kept()
    absent = "transformers.models.bert.modeling_bert:BertLayer"
    here = {path: layer for path, layer in kept.layers.items() if path != absent}
    before = {**kept.layers, "library:Forgotten": kept.layers[absent]}
    monkeypatch.setattr(compare, "read_kept", lambda: msgspec.structs.replace(kept, layers=before))
    monkeypatch.setattr(compare, "take", lambda: msgspec.structs.replace(kept, layers=here))
    assert harness("drift") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{absent}: not compared, its library is not installed" in lines
    assert "library:Forgotten: not compared, no policy replaces it any more" in lines


def test_faults_are_listed_as_json_those_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("faults", "--list", "--json", "--fault", "F33", "--fault", "F70") == 0
    listed = json.loads(capsys.readouterr().out)["faults"]
    assert {row for one in listed for row in one["rows"]} >= {"F33", "F70"}
    assert all(one["id"] and one["source"] and one["breaks"] for one in listed)
    assert harness("faults", "llama", "--list", "--json", "--fault", "F33", "--fault", "F70") == 0
    assert {one["id"] for one in json.loads(capsys.readouterr().out)["faults"]} == {"F33 theta"}


def test_timing_tested_in_a_pipe_tells_each_tenth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(device: Any, *, time_limit_seconds: float, progress: Any) -> Any:
        for done in range(380):
            progress(done + 1, 380)
        return SimpleNamespace(lines=lambda: ["no alarms"], kept=True)

    monkeypatch.setattr(selftest, "selftest", equal)
    assert harness("doctor", "--timing") == 0
    printed = capsys.readouterr()
    assert printed.out == "no alarms\n"
    assert printed.err.splitlines() == [f"comparison {done} of 380" for done in range(38, 381, 38)]


def test_a_pipe_that_nobody_reads_is_no_failed_check() -> None:
    source = "import sys; from cases.command import main; sys.argv = ['harness', 'list', '--json']; main()"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_trends_that_nobody_reads_are_written_all_the_same(tmp_path: Path) -> None:
    storage.write(synthetic.run(), tmp_path / "runs" / "one")
    page = tmp_path / "trends.html"
    arguments = ["harness", "history", str(tmp_path), "--html", str(page)]
    source = f"import sys; from cases.command import main; sys.argv = {arguments}; main()"
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert page.exists()


def test_what_would_be_timed_is_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("bench", "gpt2", "--budget", "40", "--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["rows"][0]["key"].startswith("gpt2: ")
    assert listed["seconds"] == pytest.approx(sum(row["seconds"] for row in listed["rows"]))
    assert all(one["reason"] for one in listed["left_out"])


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["--help"], ["report", "--help"]])
def test_looking_around_imports_no_torch(arguments: list[str]) -> None:
    source = (
        "import sys; from cases import CASES; from harness.cli.app import status; "
        f"code = status(CASES, {arguments!r}); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reading_finished_runs_imports_no_torch(tmp_path: Path) -> None:
    failed = synthetic.verdict(outcome="failed", failure=synthetic.failure())
    storage.write(synthetic.run(verdicts=(failed,)), tmp_path / "run")
    run, page = str(tmp_path / "run"), str(tmp_path / "trends.html")
    commands = [
        *(["report", run, "--format", one] for one in ("html", "md", "text")),
        ["compare", run, run],
        ["history", run, "--html", page],
        ["reproduce", run, synthetic.failure().id],
    ]
    source = (
        "import sys; from cases import CASES; from harness.cli.app import status; "
        f"codes = [status(CASES, one) for one in {commands!r}]; sys.exit(2 in codes or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
