"""Seeded faults: the bank is complete and in order, and its exam counts what it should."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch

from cases import CASES
from harness.case import Example
from harness.faults import CaseReport, FaultReport, run_faults
from harness.faults import exam as exam_module
from harness.faults import ledger as ledger_module
from harness.faults.bank import FAULTS, UnknownFault, find_faults
from harness.faults.exam import Exam, OutOfTime, examine
from harness.faults.fault import Fault, always, miscomputing, misfired
from harness.faults.honest import HONEST
from harness.faults.ledger import LEDGER, Entry
from harness.faults.meaningless import MEANINGLESS
from harness.profiles import Profile
from harness.properties import BY_NAME, Property
from harness.registry import choose
from harness.search import quiet, tell
from policies import replace_module
from policies.anatomy import ActivationKind
from policies.fused import onednn
from policies.fused.state import FusedState

from ..bert import BertCase

ROWS = (
    *(f"F{number:02}" for number in range(1, 84) if number not in (44, 49, 54)),
    *(f"M{number:02}" for number in range(1, 27) if number not in (16, 18, 23)),
)
"""Every row of the fault list."""
TINY = Profile("tiny", 12)
HARMLESS = Fault(
    id="M99 nothing",
    rows=("M99",),
    source="nobody",
    breaks="Nothing is broken.",
    seam="engine",
    applies=always,
    inject=contextlib.nullcontext,
)
OF_EVERY_KIND = (
    "F10 position",
    "M06 key value",
    "M14 first row",
    "M17 not returned",
    "F57 in place",
    "M20 comma",
    "F82 claimed",
    "M25 itself",
)


def opt() -> Any:
    (entry,) = choose(CASES, ["opt"])
    return entry.load()


def exam(*faults: Fault, **options: Any) -> CaseReport:
    return examine(opt(), faults=faults, profile=TINY, seed=1, honest=False, **options)


@pytest.fixture
def few_properties(monkeypatch: pytest.MonkeyPatch) -> tuple[Property, ...]:
    """Those that notice most, where what is noticed by the others is not the question."""
    few = tuple(BY_NAME[name] for name in exam_module.USUAL_ORDER)
    monkeypatch.setattr(exam_module, "PROPERTIES", few)
    return few


def _takes_no_more(honest: Any) -> Any:
    def wrong(self: FusedState) -> None:
        honest(self)

    return wrong


def report(*cases: CaseReport) -> FaultReport:
    return FaultReport(profile="tiny", seed=1, seconds=1.0, cases=cases)


def test_every_row_of_the_fault_list_is_seeded_or_listed_with_a_reason() -> None:
    seeded = {row for fault in FAULTS for row in fault.rows}
    assert seeded | set(MEANINGLESS) == set(ROWS)
    assert not seeded & set(MEANINGLESS)


def test_there_are_at_least_sixty_faults_each_with_a_name_that_begins_with_its_row() -> None:
    names = [fault.id for fault in FAULTS]
    assert len(set(names)) == len(names) >= 60
    assert all(fault.id.split()[0] in fault.rows for fault in FAULTS)


def test_every_fault_says_where_it_comes_from_and_what_it_breaks() -> None:
    for fault in (*FAULTS, *HONEST):
        assert fault.source
        assert fault.breaks.endswith(".")


ABSENT = object()


def now(owner: Any, name: str) -> Any:
    """What ``owner`` has of this name itself, not by inheritance."""
    return vars(owner).get(name, ABSENT)


@contextlib.contextmanager
def watched_patches() -> Iterator[dict[tuple[Any, str], Any]]:
    """Each owner and name that anything is exchanged at by ``mock.patch`` meanwhile, and what was there at first."""
    before: dict[tuple[Any, str], Any] = {}
    kind = type(mock.patch.object(mock, "patch"))
    honest = kind.__enter__

    def enter(self: Any) -> Any:
        owner = self.getter()
        before.setdefault((owner, self.attribute), now(owner, self.attribute))
        return honest(self)

    kind.__enter__ = enter
    try:
        yield before
    finally:
        kind.__enter__ = honest


@pytest.mark.parametrize("fault", [*FAULTS, *HONEST], ids=lambda fault: fault.id)
def test_every_fault_finds_the_place_that_it_breaks_and_mends_it_again(fault: Fault) -> None:
    threads, flash = torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()
    with watched_patches() as before:
        for _ in range(2):
            with fault.inject(replace_module) as faulty:
                exchanged = faulty is not replace_module or any(now(*place) is not value for place, value in before.items())
                assert exchanged or fault in HONEST, "an honest variant may be a setting of torch"
            assert all(now(*place) is value for place, value in before.items())
            assert (torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled()) == (threads, flash)


def test_no_fault_raises_for_what_the_code_it_is_seeded_into_calls_it_with() -> None:
    """One whose own code does not work is never noticed, and an exam of minutes is the first to say so. Each is tried on the
    first case that it fits."""
    tried, broken = set(), []
    for entry in choose(CASES, ["llama", "bert", "unet"]):
        case = entry.load()
        with quiet(), case.surroundings():
            exam = Exam(case, profile=Profile("few", 1), seed=2, shrink=False, replacer=replace_module)
            applying = {fault for fault in FAULTS if fault.applies(exam.traits) and fault.seam != "harness"}
            for fault in sorted(applying - tried, key=FAULTS.index):
                with fault.opened(replace_module) as faulty:
                    _, problem = tell(BY_NAME["model equality"], case, faulty, exam.sampled[0])
                if problem is not None and misfired(problem) is not None:
                    broken.append(misfired(problem))
            tried |= applying
    assert len(tried) > 200
    assert broken == []


def test_faults_expect_properties_that_exist() -> None:
    named = {name for fault in FAULTS for name in (*fault.expects, *fault.passes)}
    named |= {name for variant in HONEST for name in variant.passes}
    assert named <= set(BY_NAME)


def test_canaries_are_faults() -> None:
    assert {name for fault in FAULTS for name in fault.canaries} <= {fault.id for fault in FAULTS}


def test_ledger_entries_name_faults_and_cases_that_exist() -> None:
    assert {entry.fault for entry in LEDGER} <= {fault.id for fault in FAULTS}
    assert {entry.case for entry in LEDGER} <= {entry.name for entry in CASES}
    assert all(entry.why for entry in LEDGER)


def test_faults_of_every_kind_are_noticed_and_the_clean_policy_is_not() -> None:
    result = exam(*find_faults(OF_EVERY_KIND))
    assert {one.fault: one.status for one in result.outcomes} == dict.fromkeys(OF_EVERY_KIND, "killed")
    assert all(alarm.property is None for alarm in result.control)
    assert report(result).passed


@pytest.mark.usefixtures("few_properties")
def test_a_fault_whose_own_code_does_not_work_is_not_noticed_and_says_so() -> None:
    result = exam(miscomputing("M99 gone", "M99", "nobody", "Nothing is broken.", (FusedState, "bind", _takes_no_more)))
    (survivor,) = report(result).survivors
    assert "the fault itself does not work: TypeError: " in survivor.message
    assert not report(result).passed


def test_a_fault_that_makes_no_difference_survives_and_fails_the_exam(few_properties: tuple[Property, ...]) -> None:
    result = report(exam(HARMLESS))
    (survivor,) = result.survivors
    assert survivor.examples > len(few_properties)
    assert not result.passed


@pytest.mark.usefixtures("few_properties")
def test_a_ledger_entry_excuses_a_fault_that_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LEDGER", (Entry("M99 nothing", "opt", "it is nothing"),))
    result = exam(HARMLESS, *find_faults(("F10 position",)))
    assert [one.status for one in result.outcomes] == ["excused", "killed"]
    assert result.outcomes[0].message == "it is nothing"
    assert report(result).passed


@pytest.mark.usefixtures("few_properties")
def test_a_ledger_entry_for_a_fault_that_is_noticed_fails_the_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LEDGER", (Entry("F10 position", "opt", "norms are norms"),))
    result = exam(*find_faults(("F10 position",)))
    assert [one.status for one in result.outcomes] == ["stale"]
    assert not report(result).passed


@pytest.mark.usefixtures("few_properties")
def test_a_ledger_entry_for_a_fault_that_does_not_apply_fails_the_exam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LEDGER", (Entry("M99 nothing", "opt", "it is nothing"),))
    result = exam(dataclasses.replace(HARMLESS, applies=lambda traits: False))
    assert [one.status for one in result.outcomes] == ["stale"]


@pytest.mark.usefixtures("few_properties")
def test_a_fault_that_fits_no_layer_of_the_case_is_not_tried() -> None:
    assert not exam(*find_faults(("M09 gate", "M13 none", "F73 one graph"))).outcomes


def test_a_fault_of_a_kernel_that_no_call_of_this_processor_runs_is_none_here() -> None:
    (fault,) = find_faults(("F06 kernel",))
    mlp = SimpleNamespace(gate_up=None, activation=SimpleNamespace(kind=ActivationKind.GELU))
    traits: Any = SimpleNamespace(by_onednn=True, anatomies=(SimpleNamespace(mlp=mlp),))
    for slowly in (False, True):
        with mock.patch.object(onednn, "activates_slowly", return_value=slowly):
            assert fault.applies(traits) is not slowly


def test_what_a_clean_policy_fails_too_is_a_false_alarm_and_no_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(trial: Any) -> None:
        raise AssertionError("never holds")

    unjust = Property(name="unjust", statement="Nothing holds.", check=never, exact=False)
    monkeypatch.setattr(exam_module, "PROPERTIES", (BY_NAME["model equality"], unjust))
    result = exam(HARMLESS, *find_faults(("F10 position",)))
    assert [one.status for one in result.outcomes] == ["survived", "killed"]
    assert "unjust" in {alarm.property for alarm in result.control}
    assert not report(result).passed


@pytest.mark.usefixtures("few_properties")
def test_the_example_of_a_kill_is_simplified_to_the_axes_that_matter() -> None:
    (outcome,) = exam(*find_faults(("M14 first row",)), shrink=True).outcomes
    assert outcome.off_simplest is not None
    assert {"batch", "mask"} <= set(outcome.off_simplest) <= {"batch", "mask", "padding", "attention", "tokens"}


@pytest.mark.usefixtures("few_properties")
def test_a_fault_that_lives_in_one_stage_is_located_there() -> None:
    faults = find_faults(("M14 first row", "F19 blocked", "M06 interleaved", "M07 transposed"))
    result = report(exam(*faults, shrink=True))
    assert result.placed and result.located_rate == 1.0
    assert all(one.departs and set(one.places) for one in result.placed)


def test_a_fault_of_the_whole_layer_has_no_place() -> None:
    (outcome,) = exam(*find_faults(("F57 in place",)), shrink=True).outcomes
    assert outcome.status == "killed" and not outcome.places and not outcome.located


@pytest.mark.usefixtures("few_properties")
def test_an_exam_of_an_honest_variant_raises_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam_module, "HONEST", tuple(one for one in HONEST if one.id == "unpacked"))
    result = examine(opt(), faults=(), profile=TINY, seed=1)
    assert [(alarm.subject, alarm.property) for alarm in result.honest] == [("unpacked", None)]


def test_a_setting_by_which_masked_tokens_count_refutes_nobody_who_leaves_garbage_there() -> None:
    """BERT's attention, told that it crosses, takes its mask from an encoder that is not there, and attends to padding."""
    bert = BertCase()
    values = {**bert.simplest.values, "layers": 3, "batch": 2, "tokens": 11, "padding": "interior", "mask": "2d"}
    (garbage,) = (one for one in HONEST if one.id == "garbage in padding")
    with quiet(), garbage.opened(replace_module) as replacer:
        assert tell(BY_NAME["settings"], bert, replacer, Example(values, 36383)) == (False, None)


def test_a_report_without_a_judged_pair_does_not_pass() -> None:
    assert not report().passed
    assert report().kill_rate == 0.0
    assert report().median_examples is None


@pytest.mark.usefixtures("few_properties")
def test_a_report_is_json_with_its_summary_first() -> None:
    read = msgspec.json.decode(report(exam(*find_faults(("F10 position",)))).to_json())
    assert (read["passed"], read["pairs"], read["kill_rate"]) == (True, 1, 1.0)
    assert read["cases"][0]["outcomes"][0]["killer"] == "model equality"


def test_a_case_whose_library_is_missing_is_a_problem_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = choose(CASES, ["opt"])
    monkeypatch.setattr(type(entry), "unavailable", "transformers is not installed")
    result = run_faults((entry,), profile=TINY)
    assert result.problems == ("opt: transformers is not installed",)
    assert not result.passed


def test_a_row_stands_for_all_of_its_faults() -> None:
    assert {"M10 style", "M10 offset", "F33 theta"} <= {fault.id for fault in find_faults(("M10",))}


def test_an_unknown_fault_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownFault, match="no fault is called 'F10 positon'; did you mean 'F10 position'"):
        find_faults(("F10 positon",))


def test_examples_are_aimed_at_a_fault_that_few_of_them_can_show() -> None:
    """Asked whether a fault can be seen, the exam begins with examples on which it can matter."""
    (fault,) = find_faults(("M01 tanh",))
    aimed = Exam(opt(), profile=TINY, seed=0, shrink=False, replacer=replace_module, aimed=True)
    assert aimed.sampled[0]["activation"] != "gelu"
    outcome = aimed.try_fault(fault)
    assert outcome is not None and outcome.examples == 1


def test_an_exam_whose_time_is_over_says_so_instead_of_an_outcome() -> None:
    """A fault that was not tried to its end is neither noticed nor missed."""
    (fault,) = find_faults(("F01 relu",))
    late = Exam(opt(), profile=TINY, seed=0, shrink=False, replacer=replace_module, until=0.0)
    with pytest.raises(OutOfTime):
        late.try_fault(fault)
