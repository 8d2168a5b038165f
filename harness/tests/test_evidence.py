"""Evidence on failure: it names the cause, and it never hides what failed."""

from __future__ import annotations

import itertools

import pytest

from harness.case import Axis, Example
from harness.check import check_property, off_simplest
from harness.evidence import gather as gather_module
from harness.evidence import minimise as minimising
from harness.evidence.localise import localise
from harness.evidence.minimise import minimise, nearest_passing
from harness.evidence.script import run_here, script
from harness.properties import BY_NAME
from harness.search import quiet, search
from harness.validation.derive import derive
from harness.validation.derived import DerivedCase
from policies import replace_module
from reports.record import first_departing

from . import tiny
from .mutants import FEW, MUTANTS, Mutant, case_named, failure_of, mask_ignored, misread, mutant
from .wrong import memories

DERIVED = "transformers.models.bert.modeling_bert:BertLayer"
MODEL_EQUALITY = BY_NAME["model equality"]
AXES = (Axis("a", (1, 2, 3)), Axis("b", ("x", "y", "z")), Axis("c", (False, True)), Axis("d", (4, 3, 5), claimed=False))


def example(**values: object) -> Example:
    return Example({axis.name: values.get(axis.name, axis.simplest) for axis in AXES}, 7)


def test_an_example_is_made_simple_but_for_the_axes_that_matter() -> None:
    worst = Example({"a": 3, "b": "z", "c": True, "d": 5}, 999)
    least = minimise(worst, AXES, lambda one: one["a"] >= 2 and one["c"])
    assert dict(least.values) == {"a": 2, "b": "x", "c": True, "d": 4}


def test_the_seed_stays_because_a_property_chooses_by_it_what_it_asks() -> None:
    worst = Example({"a": 3, "b": "z", "c": True, "d": 5}, 999)
    assert minimise(worst, AXES, lambda one: True).seed == 999


def test_minimising_stops_at_its_budget() -> None:
    asked = []
    minimise(Example({"a": 3, "b": "z", "c": True, "d": 5}, 9), AXES, lambda one: bool(asked.append(one)), budget=5)
    assert len(asked) == 5


def test_minimising_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = itertools.count(0, minimising.SECONDS / 2), []
    monkeypatch.setattr(minimising.time, "monotonic", lambda: next(clock))
    minimise(Example({"a": 3, "b": "z", "c": True, "d": 5}, 9), AXES, lambda one: bool(asked.append(one)))
    assert len(asked) == 2


def test_the_nearest_passing_example_has_one_axis_put_back() -> None:
    near = nearest_passing(example(a=2, c=True), AXES, lambda one: one["c"])
    assert near is not None and dict(near.values) == {"a": 2, "b": "x", "c": False, "d": 4}


def test_the_nearest_passing_example_has_two_axes_put_back_where_one_is_not_enough() -> None:
    near = nearest_passing(example(a=2, c=True), AXES, lambda one: one["c"] or one["a"] == 2)
    assert near is not None and dict(near.values) == {"a": 1, "b": "x", "c": False, "d": 4}


def test_where_the_simplest_example_fails_another_value_may_pass() -> None:
    near = nearest_passing(example(), AXES, lambda one: one["b"] == "x")
    assert near is not None and near["b"] == "y"


def test_where_nothing_passes_there_is_no_nearest_example() -> None:
    assert nearest_passing(example(a=2), AXES, lambda one: True) is None


def test_an_example_that_shows_nothing_is_not_said_to_pass() -> None:
    assert nearest_passing(example(a=2), AXES, lambda one: None) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, id=f"{fault.name}-{name}")
        for fault in MUTANTS
        for name in ("gpt2", "bert", "llama", "gpt_neox")
        if name not in fault.unfit
    ],
)
def test_the_first_departing_stage_is_the_faulty_one(name: str, fault: Mutant) -> None:
    case = case_named(name)
    expected: set[str] = set()

    def edit(anatomy):  # type: ignore[no-untyped-def]
        wrong = fault.edit(anatomy)
        expected.update(fault.stages(anatomy) if wrong is not anatomy else ())
        return wrong

    with misread(edit), quiet():
        failure = search(MODEL_EQUALITY, case, replace_module, examples=40, seed=1).failure
        assert failure is not None
        assert len(off_simplest(failure[0], case.axes)) <= 2
        stage = first_departing(localise(case, failure[0], replace_module))
    assert stage is not None and any(stage.name.endswith(f".{one}") for one in expected)
    assert stage.own_error > 1e-6 and stage.inherited_error < 1e-12


def test_stages_after_the_faulty_one_have_inherited_their_error() -> None:
    stages = failure_of(case_named("gpt2"), mutant("attention scale")).stages
    after = [one.name for one in stages].index("h.0.attn.c_proj:input") + 1
    assert all(one.own_error < 1e-12 < one.inherited_error for one in stages[after:])


def test_a_mask_that_is_ignored_shows_in_the_attention() -> None:
    case = case_named("bert")
    with mask_ignored():
        failure = check_property(MODEL_EQUALITY, case, profile=FEW, seed=1, policy="").verdict.failure
    assert failure is not None
    stage = first_departing(failure.stages)
    assert stage is not None and stage.name.endswith("attention.output.dense:input")
    assert failure.nearest_passing is not None and "mask" in failure.off_simplest


def test_a_replacement_that_raises_is_localised_to_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    from policies.fused import mlp

    monkeypatch.setattr(mlp.FusedMLP, "_inner", lambda *_: 1 / 0)
    case = case_named("gpt2")
    with quiet():
        stage = first_departing(localise(case, case.simplest, replace_module))
    assert stage is not None and stage.name == "after h.0.ln_2"


def test_a_sound_replacement_has_no_departing_stage() -> None:
    case = case_named("llama")
    with quiet():
        assert localise(case, case.simplest, replace_module) == ()


def test_parts_that_emit_nothing_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from policies.fused import swapped
    from policies.fused.diffusion_attention import FusedAttention

    honest = FusedAttention.forward
    monkeypatch.setattr(FusedAttention, "forward", lambda *args, **kwargs: 2.0 * honest(*args, **kwargs))
    case = case_named("unet")
    monkeypatch.setattr(swapped, "_CLASSES", {})  # classes that exist have the honest forward already
    with quiet():
        stage = first_departing(localise(case, case.simplest, replace_module))
    assert stage is not None and ".attn" in stage.name


def test_evidence_that_cannot_be_gathered_is_said_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\nstage")

    for part in ("localise", "script", "nearest_passing"):
        monkeypatch.setattr(gather_module, part, broken if part != "nearest_passing" else lambda *_, **__: broken())
    failure = failure_of(case_named("gpt2"), mutant("attention scale"))
    assert failure.message.startswith("whole model: last_hidden_state: relative error")
    assert failure.notes == (
        "No nearest passing example: RuntimeError: no such stage.",
        "No departing stage: RuntimeError: no such stage.",
        "No script: RuntimeError: no such stage.",
    )


def test_the_minimal_example_and_its_neighbour_differ_in_the_axis_that_matters() -> None:
    failure = failure_of(case_named("llama"), mutant("attention output bias dropped"))
    assert failure.off_simplest == ("attention_bias",)
    assert failure.nearest_passing == {**failure.example, "attention_bias": "False"}


def test_a_failure_between_calls_of_a_derived_case_has_a_script_too() -> None:
    """It takes the derivation along."""
    case, drifting = DerivedCase(derive(DERIVED)), tiny.around(memories.drifts)
    text = script(BY_NAME["call twice"], case, case.simplest, drifting)
    assert run_here(text, drifting)[0] == 1
    assert run_here(text, replace_module) == (0, "the property holds")
