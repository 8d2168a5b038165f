"""Validating policies from outside the tree: each is judged on what it replaces, and bad ones end in a verdict of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from harness.bench import rows
from harness.case import Axis, Case
from harness.check import Checked
from harness.process import SHARED
from harness.validation import work
from harness.validation.derivation import Derivation
from harness.validation.file import Contents
from harness.validation.isolation import Limits
from harness.validation.subject import Subject
from harness.validation.validate import Request, Validation, record, validate
from harness.validation.verdict import NO_FLOAT64, TOO_SLOW, block
from harness.validation.work import Task, judge, time_subject
from reports.record import Failure, Verdict
from reports.tests import synthetic

from .validated import BAD, LIMITS, judged, reason

ROOT = Path(__file__).parents[2]
REVERSED = """
import dataclasses
from policies.gpt2 import HFGPT2LayerPolicy

class Mine(HFGPT2LayerPolicy):
    @classmethod
    def read(cls, layer):
        found = super().read(layer)
        return dataclasses.replace(found, attention_norm=found.mlp_norm, mlp_norm=found.attention_norm)
"""


@pytest.mark.parametrize(
    ("name", "policy", "words"),
    [
        ("does_not_import", None, "does not import: ModuleNotFoundError: No module named 'a_package_that_nobody_has'"),
        ("no_policy", None, "has no policy: define a subclass"),
        ("is_not_there", None, "there is no such file"),
        ("names_no_layer", None, 'NamesNoLayer.layer_classes has to be a tuple of names: ("module:Class",)'),
    ],
)
def test_a_file_without_the_policy_that_is_meant_says_what_is_missing(name: str, policy: str | None, words: str) -> None:
    """What cannot be taken from a file ends the validation with one line that says what to do."""
    done = judged(name, policy=policy)
    assert [one.property for one in done.verdicts] == ["file"]
    assert words in reason(done, "file")
    assert "\n" not in reason(done, "file")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_type", "read() has to return a LayerAnatomy, not a dict"),
        ("plans_nothing", "plan() has to return a policies.swap.Swap, not a NoneType"),
        ("raises", "AttributeError: 'LlamaDecoderLayer' object has no attribute 'a_part_that_is_not_there' (line "),
        ("refuses_everything", "refuses even the simplest model: LlamaDecoderLayer: nothing is good enough"),
        ("allocates", "MemoryError"),
        ("leaves", "left by SystemExit"),
        ("exits", "ended its process (exit status 3)"),
        ("is_killed", "ended its process (killed by SIGKILL)"),
        ("segfaults", "ended its process (killed by SIGSEGV)"),
        ("changes_weights", "after reading: layers.0.self_attn.q_proj.weight is not bit for bit the original's"),
        ("changes_precision", "the replacement changed what the original runs by as well: the precision of products"),
        ("changes_code", "after reading: LlamaDecoderLayer.forward is another function than before"),
        ("matches_nothing", "the policy matches 0 of 1 layers (layer_classes: transformers.models.llama"),
    ],
)
def test_a_policy_that_reads_badly_gets_a_verdict_of_its_own(name: str, words: str) -> None:
    """Whatever reading a layer does, it ends in one clear line, and what depends on it says so."""
    done = judged(name)
    assert words in reason(done, "reading")
    assert not reason(done, "file")
    assert [one.property for one in done.verdicts] == ["file", "case", "reading", "contract"]


@pytest.mark.parametrize("name", ["raises", "refuses_everything", "plans_nothing"])
def test_where_reading_the_simplest_layer_fails_no_property_is_asked(name: str) -> None:
    """Each would say the same again."""
    done = judged(name, "layer equality", "revert")
    assert {reason(done, one) for one in ("layer equality", "revert")} == {"not judged: reading fails on the simplest layer"}


@pytest.mark.parametrize(
    ("name", "prop", "words"),
    [
        ("wrong_count", "contract", "attention() has to return 7 values"),
        ("wrong_shape", "contract", "QKV bias has shape (3,)"),
        ("wrong_names", "contract", "attention.dense.weight"),
        ("wrong_wiring", "layer equality", "relative error"),
    ],
)
def test_a_policy_that_says_wrong_things_is_refuted_by_the_property_that_asks(name: str, prop: str, words: str) -> None:
    """Counts, shapes, names and wiring: the property at fault fails, and the others are judged all the same."""
    done = judged(name, prop, "revert")
    assert words in reason(done, prop)
    assert not reason(done, "reading")
    assert not reason(done, "revert")


@pytest.mark.parametrize(("name", "stage", "where"), [("loops", "reading", "read"), ("loops_on_import", "file", "<module>")])
def test_a_policy_that_never_ends_is_stopped_and_the_line_is_named(name: str, stage: str, where: str, tmp_path: Path) -> None:
    """A stage that takes longer than its limit costs its own verdict."""
    request = Request(
        path=str(shutil.copy(BAD / f"{name}.py", tmp_path)),
        profile="quick",
        budget=0.0,
        limits=Limits(seconds=3.0, memory=2**30, workers=1),
        properties=("contract",),
    )
    done = validate(request)
    assert re.search(rf"did not end within 3 s, and was stopped in {name}\.py, line \d+ \({where}\)$", reason(done, stage))
    assert next(one.seconds for one in done.verdicts if one.property == stage) >= 3.0


def test_the_verdict_names_the_stage_at_which_a_policy_departs_first(tmp_path: Path) -> None:
    done = judged("wrong_wiring", "layer equality", "model equality")
    request = Request(path=str(BAD / "wrong_wiring.py"), limits=LIMITS)
    text = block(
        record(request, done, run_id="1", created="2026-03-02T02:17:00+00:00", command="harness validate"), done, tmp_path
    )
    assert "- departs first at **layers.0." in text and "in 2 of 2" in text


def test_syntax_errors_name_their_line(tmp_path: Path) -> None:
    """A file that is not Python says on which line."""
    path = tmp_path / "broken.py"
    path.write_text("class Policy(\n    layer_classes = (\n")
    done = validate(Request(path=str(path), limits=LIMITS))
    assert "SyntaxError" in reason(done, "file") and "(line " in reason(done, "file")


def test_layer_classes_that_are_a_string_are_shown_as_they_should_be(tmp_path: Path) -> None:
    """A tuple of one without its comma is a string, and its letters are no layers."""
    path = tmp_path / "one.py"
    path.write_text((BAD / "wrong_type.py").read_text() + "\n\nBadPolicy.layer_classes = 'module:Layer'\n")
    done = validate(Request(path=str(path), limits=LIMITS))
    assert reason(done, "file") == 'BadPolicy.layer_classes has to be a tuple: ("module:Layer",)'


def test_a_file_of_which_nothing_could_be_judged_is_not_said_to_fail(tmp_path: Path) -> None:
    """The headline names the file, and no counts of nothing."""
    path = tmp_path / "empty.py"
    path.write_text("")
    request = Request(path=str(path), limits=LIMITS)
    done = validate(request)
    text = block(
        record(request, done, run_id="1", created="2026-03-02T02:17:00+00:00", command="harness validate"), done, tmp_path
    )
    assert text.startswith("### empty.py: NOT JUDGED\n")
    assert "0 of 0" not in text


def test_a_kernel_without_float64_is_told_what_it_needs_to_be_judged(tmp_path: Path) -> None:
    """Exact properties fail, those in the kernel's own dtypes hold, and the verdict says what makes the others hold, too."""
    done = judged("no_float64", "layer equality", "rounding float32")
    request = Request(path=str(BAD / "no_float64.py"), limits=LIMITS)
    text = block(
        record(request, done, run_id="1", created="2026-03-02T02:17:00+00:00", command="harness validate"), done, tmp_path
    )
    assert reason(done, "layer equality").startswith("TypeError: no kernel for float64")
    assert not reason(done, "rounding float32")
    assert f"Next: {NO_FLOAT64}." in text


START = """
from harness import pool as pools
from harness.validation import isolation

if __name__ == "__main__":
    pools.PRELOAD = "string"
    with isolation.isolated(isolation.Limits(workers=1), fresh=False) as pool:
        print(pool.run(len, "four"))
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before Python 3.11 the folder is always on the path")
def test_files_in_the_folder_that_somebody_works_in_shadow_no_library(tmp_path: Path) -> None:
    """Authors call their files what they like, and run the harness beside them."""
    (tmp_path / "string.py").write_text("raise SystemExit('imported by mistake')")
    (tmp_path / "elsewhere").mkdir()
    start = tmp_path / "elsewhere" / "start.py"
    start.write_text(START)
    done = subprocess.run([sys.executable, start], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "4\n", done.stderr


def test_verdicts_come_in_the_order_of_the_properties() -> None:
    """The dearest are judged first; whoever reads the verdict finds them where they always are."""
    done = judged("wrong_wiring", "revert", "layer equality")
    assert [one.property for one in done.verdicts] == ["file", "case", "reading", "layer equality", "revert"]


@pytest.mark.parametrize("example", ["mistral", "cohere", "stablelm", "mixtral_experts"])
def test_the_examples_hold(example: str) -> None:
    """Each policy under ``examples`` takes its layer and computes the same function, on a case derived from it."""
    path = Path(__file__).parents[2] / "examples" / f"{example}.py"
    limits = Limits(seconds=120.0, memory=2**31, workers=1)
    request = Request(
        path=str(path),
        profile="quick",
        budget=0.0,
        faults=0.0,
        limits=limits,
        properties=("layer equality", "model equality", "refusal"),
    )
    done = validate(request)
    assert not done.failed, [f"{one.property}: {one.reason}" for one in done.failed]
    assert len(done.verdicts) == 6


def test_a_policy_that_cannot_be_timed_does_not_hold(tmp_path: Path) -> None:
    """As the exit status says."""
    request = Request(path="mine.py")
    done = Validation(policy="Mine", file="mine.py", subjects={"bert": Subject("mine.py", Contents("Mine", (), None))})
    done.verdicts.append(synthetic.verdict())
    done.timings = (synthetic.timing(verdict="FAILED", reason="no layer was replaced"),)
    run = record(request, done, run_id="1", created="", command="")
    text = block(run, done, tmp_path)
    assert not run.ok and text.startswith("### Mine: DOES NOT HOLD")
    assert "- **timing**: no layer was replaced [" in text


def test_a_verdict_to_paste_says_how_a_failure_is_shown_again_and_what_a_slow_check_needs(tmp_path: Path) -> None:
    request = Request(path="mine.py")
    done = Validation(policy="Mine", file="mine.py", subjects={"bert": Subject("mine.py", Contents("Mine", (), None))})
    failed = synthetic.full_run(faulty=True).verdicts
    done.verdicts += [synthetic.verdict(outcome="error", reason="did not end within 60 s, and was stopped")]
    done.verdicts += [one for one in failed if one.failure is not None and one.failure.script][:1]
    text = block(record(request, done, run_id="1", created="", command=""), done, tmp_path)
    assert f"Next: {TOO_SLOW}." in text
    assert f"Again, by itself: harness reproduce {tmp_path} " in text


def test_a_workload_that_does_not_fit_the_memory_of_a_check_is_not_timed_and_says_what_would() -> None:
    """It does not fail: nothing of the policy is wrong."""
    subject = Subject("", Contents("Mine", (), None), known="cases.unet:UNetCase")
    assert (
        time_subject(subject, 1.0, 0, 2**30, torch.get_num_threads())
        == "its workloads need 8 GiB of memory or more; allow it with --memory"
    )


def test_a_validation_times_by_as_many_threads_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that check have one each; the record's environment has as many as a command has."""
    seen: list[tuple[int, int]] = []
    policy = Contents("BadPolicy", (), None)
    monkeypatch.setattr(rows, "show_equal", lambda *_: 0.0)
    monkeypatch.setattr(rows, "compare", lambda *_, device, **__: seen.append((torch.get_num_threads(), device.threads)))
    SHARED.look_at()  # else it would first see, and hold tests that follow to, the two threads that are set below
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        time_subject(Subject(str(BAD / "wrong_wiring.py"), policy, known="cases.bert:BertCase"), 0.1, 0, None, 2)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {(2, 2)}


def test_a_failure_found_without_an_axis_has_a_note_a_line_and_a_script_of_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was asked again is told like what was asked once."""
    derivation = Derivation(layer="m:L", model="m:M", config="m:C", fields={}, axes=(Axis("mask", ("none", "2d")),))

    def check(task: Task, case: Case) -> Checked:
        asked = Verdict(
            case="L", policy="Mine", property=task.prop, statement="It holds.", outcome="error", reason="no", examples=1,
            layers_replaced=0, layers_expected=1, seconds=0.0, seed=0,
        )  # fmt: skip
        if len(case.axes[0].values) > 1:
            return Checked(asked, original_raised=True)
        raised = 'File "mine.py", line 7, in read'
        failure = Failure(id="1", message="no", example={}, script='POLICY = ""', traceback=raised)
        return Checked(msgspec.structs.replace(asked, outcome="failed", failure=failure))

    monkeypatch.setattr(work, "_check", check)
    verdict = judge(Task(Subject("mine.py", Contents("Mine", (), None), derivation), "revert", "quick", 0)).verdict
    assert verdict.failure is not None and verdict.failure.script == "POLICY = 'mine.py:Mine'"
    assert (verdict.outcome, verdict.reason) == ("failed", "no (line 7 of the policy)")
    assert verdict.statement == "It holds. (Asked without mask, with which the original itself fails.)"


@pytest.mark.parametrize("prop", ["layer equality", "cache"])
def test_the_script_of_a_failure_shows_it_by_itself_with_the_policy_that_was_validated(prop: str, tmp_path: Path) -> None:
    policy = tmp_path / "mine.py"
    policy.write_text(REVERSED)
    limits = Limits(seconds=60.0, memory=2**30, workers=1)
    done = validate(Request(path=str(policy), profile="quick", budget=0.0, limits=limits, properties=(prop,)))
    (failed,) = (one.failure for one in done.failed)
    assert failed is not None and failed.script is not None
    script = tmp_path / "script.py"
    script.write_text(failed.script)
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    by_itself = subprocess.run(command, capture_output=True, text=True, check=False, env=here, cwd=tmp_path)
    assert by_itself.returncode == 1, by_itself.stderr
    assert "agrees" not in by_itself.stdout
