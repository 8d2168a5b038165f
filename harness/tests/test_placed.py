"""A case on another device. Where there is no GPU, torch's meta device stands in: it computes shapes, and mixes with no other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cases import CASES
from cases.bert import BertCase
from harness.case import Case
from harness.check import check_property
from harness.cli.app import status
from harness.evidence.script import _carried_along, _module
from harness.numerics import gap
from harness.placed import kind_of, placed
from harness.profiles import depth
from harness.properties import BY_NAME
from harness.registry import CaseEntry, choose
from harness.validation.file import Contents
from harness.validation.subject import Subject
from harness.validation.validate import Request, Validation, record
from harness.workers import Task, run_task
from policies.replace import Replacement
from reports.record import Verdict

AVAILABLE = [entry for entry in CASES if entry.unavailable is None]


def devices(*values: object) -> set[str]:
    tensors = [one for one in tree_leaves(values) if isinstance(one, Tensor)]
    tensors += [one for model in values if isinstance(model, nn.Module) for one in (*model.parameters(), *model.buffers())]
    return {one.device.type for one in tensors}


@pytest.mark.parametrize("entry", AVAILABLE, ids=lambda one: one.name)
def test_a_placed_case_makes_all_its_models_and_inputs_there(entry: CaseEntry) -> None:
    case = placed(entry.load(), "meta")
    with case.surroundings():
        inputs = case.inputs(case.simplest)
        refused = [one.build() for one in case.refusals()]
        assert devices(case.build(case.simplest), inputs.kwargs, inputs.valid, *refused) == {"meta"}


def test_a_case_stays_itself_where_it_is_and_knows_its_kind_elsewhere() -> None:
    case = BertCase()
    assert placed(case, "cpu") is case
    there = placed(case, "meta")
    assert isinstance(there, BertCase) and kind_of(there) is kind_of(case) is BertCase
    assert (there.name, there.axes, there.device, case.device) == (case.name, case.axes, "meta", "cpu")
    assert placed(there, "meta") is there


def test_what_is_validated_on_a_device_has_its_models_there_and_verdicts_of_their_own() -> None:
    subject = Subject("mine.py", Contents("Mine", (), None), known="cases.bert:BertCase", device="meta")
    assert devices(subject.case.build(subject.case.simplest)) == {"meta"}
    refusing = dataclasses.replace(subject, refused=(("layers", 2, "two layers"),))
    assert len(refusing.case.refusals()) == len(subject.case.refusals()) + 1
    assert devices(*(one.build() for one in refusing.case.refusals())) == {"meta"}
    request = Request(path="mine.py", device="cuda")
    done = Validation(policy="Mine", file="mine.py", subjects={"bert": subject})
    done.verdicts.append(Verdict(
        case="bert", policy="Mine", property="revert", statement="It holds.", outcome="held", reason="", examples=1,
        layers_replaced=1, layers_expected=1, seconds=0.0, seed=0,
    ))  # fmt: skip
    assert [one.policy for one in record(request, done, run_id="1", created="", command="").verdicts] == ["Mine, on cuda"]


def test_a_result_on_another_device_is_no_match() -> None:
    found = gap(torch.ones(2), torch.ones(2, device="meta"))
    assert found.problem == "expected a tensor on cpu, got one on meta"


def test_verdicts_of_a_device_and_a_plan_go_under_their_own_name() -> None:
    (entry,) = choose(CASES, ["bert"])
    task = Task(entry, "revert", depth("quick"), 0, plan="graphed", device="cuda")
    assert task.policy == f"{entry.policy_class}, plan graphed, on cuda"


def test_a_script_places_its_case_where_the_failure_was() -> None:
    case: Case = placed(BertCase(), "meta")
    text = _carried_along(BY_NAME["model equality"], case, case.simplest, "auto")
    assert "case = placed(BertCase(), 'meta')" in text
    with _module("placed_script") as module:
        exec(compile(text, "placed_script.py", "exec"), module.__dict__)
        assert module.placed(module.BertCase(), "meta").build(module.EXAMPLE).dtype is torch.float32


def test_a_device_without_memory_left_says_nothing_about_a_policy() -> None:
    def exhausted(model: nn.Module) -> Replacement:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 MiB.")

    checked = check_property(BY_NAME["revert"], BertCase(), profile=depth("quick"), seed=0, policy="", replacer=exhausted)
    assert (checked.verdict.outcome, checked.verdict.reason[:36]) == ("error", "OutOfMemoryError: CUDA out of memory")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_checking_process_gives_back_the_memory_of_a_gpu() -> None:
    (entry,) = choose(CASES, ["bert"])
    assert run_task(Task(entry, "large layers", depth("quick"), 0, device="cuda")).verdict.outcome == "held"
    assert torch.cuda.memory_reserved() < 2**28  # what its libraries work in


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_check_on_a_gpu_that_is_not_there_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert status(CASES, ["check", "bert", "--device", "cuda", "--out", f"{tmp_path}/run"]) == 2
    assert capsys.readouterr().err.startswith("harness: no CUDA device")
