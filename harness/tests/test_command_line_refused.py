"""What the command line refuses: exit status 2, one line that says what to do, nothing begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.validate import _see_python
from reports import storage

from .command_line import begun, harness, one_line


@pytest.mark.parametrize("command", ["check", "bench", "run", "list"])
@pytest.mark.parametrize("name", ["bret", "BERT"])
def test_an_unknown_case_gets_a_suggestion(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness(command, name) == 2
    assert one_line(capsys) == f"harness: no case is called {name!r}; did you mean bert?"


def test_a_case_that_resembles_nothing_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("check", "zzzz") == 2
    assert "there are: bert roberta" in one_line(capsys)


def test_a_mistyped_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("comparre") == 2
    assert "compare" in one_line(capsys)


@pytest.mark.parametrize("command", ["check", "faults"])
def test_an_unknown_plan_gets_the_list(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness(command, "bert", "--plan", "fastest") == 2
    known = "auto plain onednn packed graphed compiled"
    assert one_line(capsys) == f"harness: no execution plan is called 'fastest'; there are: {known}"


def test_an_unknown_property_gets_a_suggestion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert harness("check", "bert", "--property", "cach", "--out", tmp_path / "run") == 2
    assert one_line(capsys) == "harness: no property is called 'cach'; did you mean 'cache'?"
    assert not (tmp_path / "run").exists()


def test_a_property_that_makes_no_sense_for_any_case_is_refused_and_begins_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Else a check that judges nothing would end as one in which all held."""
    assert harness("check", "bert", "--property", "captured graphs", "--out", tmp_path / "run") == 2
    assert one_line(capsys).endswith("captured graphs makes no sense for bert")
    assert not (tmp_path / "run").exists()


def test_a_bench_goes_on_only_where_its_device_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path / "run", check=False, bench=True, device="cuda", budget=5.0)
    assert harness("bench", "--resume", folder) == 2
    assert "no CUDA device" in one_line(capsys)


@pytest.mark.parametrize("name", ["deep", "bench"])
def test_an_unknown_profile_names_the_profiles(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert harness("check", "bert", "--profile", name, "--out", tmp_path / "run") == 2
    assert "quick regression nightly" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert harness("check", "bert", "--out", tmp_path / "file" / "run") == 2
    assert str(tmp_path / "file") in one_line(capsys)


@pytest.mark.parametrize("command", [("check", "bert"), ("validate", __file__)], ids=lambda command: command[0])
def test_a_folder_without_a_name_is_not_the_one_that_somebody_stands_in(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness(*command, "--out", "") == 2
    assert "the folder has no name; . is the one you are in" in one_line(capsys)


@pytest.mark.parametrize(
    "command",
    [("validate", __file__), ("adapters", "channels_last"), ("new", "Mine", "--layer", "transformers:PhiModel")],
    ids=lambda command: command[0],
)
def test_a_folder_that_cannot_be_made_is_named_before_anything_is_done(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert harness(*command, "--out", tmp_path / "file") == 2
    assert one_line(capsys).endswith(f"{tmp_path / 'file'}: cannot be written (File exists)")


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "has 2 policies; say which: "), (":SecnodPolicy", "did you mean SecondPolicy?")],
    ids=["none", "typo"],
)
def test_a_policy_that_its_file_has_not_got_is_bad_usage_and_leaves_no_folder(
    name: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = Path(__file__).with_name("bad_policies") / "two_policies.py"
    assert harness("validate", f"{file}{name}", "--out", tmp_path / "run") == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("class Policy(\n    layer_classes = (\n", ", line 2: not Python: "), ("a = '\0'", "not Python: ")],
    ids=["syntax", "null byte"],
)
def test_a_file_that_cannot_be_parsed_is_bad_usage_and_leaves_no_folder(
    text: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(text)
    assert harness("validate", tmp_path / "broken.py", "--out", tmp_path / "run") == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_file_that_python_warns_of_can_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "warned.py").write_text(r"PATTERN = '\d'")
    _see_python(tmp_path / "warned.py")


def test_a_damaged_run_is_not_said_to_be_finished(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": ')
    assert harness("check", "--resume", tmp_path) == 2
    assert "not a run record" in one_line(capsys)


def test_no_policy_is_written_over_another_or_under_a_name_that_no_class_can_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("somebody's work")
    for name, words in (("Mine", "mine.py: exists, and is not overwritten"), ("class", "'class' cannot be the name")):
        assert harness("new", name, "--layer", "transformers:PhiModel", "--out", tmp_path) == 2
        assert words in one_line(capsys)
    assert (tmp_path / "mine.py").read_text() == "somebody's work"


def test_a_device_that_is_not_there_is_said_before_anything_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    for command in (("bench", "bert"), ("validate", __file__)):
        assert harness(*command, "--device", "cuda", "--out", tmp_path / "run") == 2
        assert "no CUDA device" in one_line(capsys)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "word"), [("", "not a run record"), ("{}", "not a run record"), ('{"schema": 99}', "version 99")]
)
def test_a_damaged_record_is_refused_in_one_line(
    content: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / storage.RECORD_NAME).write_text(content)
    assert harness("report", tmp_path) == 2
    assert word in one_line(capsys)
    assert not (tmp_path / "index.html").exists()


def test_faults_of_a_case_that_does_not_exist_are_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("faults", "brt", "--list") == 2
    assert "did you mean bert?" in one_line(capsys)


def test_a_fault_that_can_matter_nowhere_is_refused_and_its_case_is_no_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("faults", "vae", "--fault", "F01") == 2
    assert one_line(capsys).endswith("F01 can matter in no model of vae")
    assert harness("faults", "vae", "--fault", "f01") == 2
    assert one_line(capsys) == "harness: no fault is called 'f01'; did you mean 'F01'?"


def test_doctor_takes_no_device_for_what_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness("doctor", "--device", "cuda") == 2
    assert one_line(capsys).endswith("--device and --limit say how --timing is done; add --timing")


def test_what_a_resumed_run_is_told_besides_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on with what it was asked for, and nobody shall believe that it checked something else."""
    assert harness("check", "bert", "--resume", tmp_path, "--seed", 5, "--plan", "packed") == 2
    assert one_line(capsys).endswith("--resume goes on with what was asked for then; leave out cases, plan, seed")
