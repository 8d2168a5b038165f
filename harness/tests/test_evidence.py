"""Evidence on failure: it names the cause, and it never hides what failed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cases import CASES
from harness.case import Axis, Case, Example
from harness.check import check_property, off_simplest
from harness.coverage import claimed_pairs, coverage, coverage_failure, tally
from harness.covering import covering_array, covering_examples
from harness.evidence import gather as gather_module
from harness.evidence import minimise as minimising
from harness.evidence.literals import CannotWriteError, literal
from harness.evidence.localise import first_departing, localise
from harness.evidence.minimise import minimise, nearest_passing
from harness.evidence.script import run_here, script
from harness.profiles import Profile
from harness.properties import BY_NAME
from harness.search import quiet, search
from policies import replace_module
from reports.record import Failure

from .mutants import MUTANTS, Mutant, mask_ignored, misread

ROOT = Path(__file__).parents[2]
MODEL_EQUALITY = BY_NAME["model equality"]
FEW = Profile("few", 40)
AXES = (Axis("a", (1, 2, 3)), Axis("b", ("x", "y", "z")), Axis("c", (False, True)), Axis("d", (4, 3, 5), claimed=False))

FAULTY_POLICY = """
import dataclasses
from policies import replace_module as honest
from policies.gpt2 import HFGPT2LayerPolicy
from policies.llama import LlamaLayerPolicy


class DoubledScale(HFGPT2LayerPolicy):
    @classmethod
    def read(cls, layer):
        anatomy = HFGPT2LayerPolicy.read.__func__(cls, layer)
        attention = dataclasses.replace(anatomy.attention, scale=2.0 * anatomy.attention.scale)
        return dataclasses.replace(anatomy, attention=attention)


def replace_module(model):
    return honest(model, [DoubledScale])
"""


def case_named(name: str) -> Case:
    return next(entry for entry in CASES if entry.name == name).load()


def mutant(name: str) -> Mutant:
    return next(one for one in MUTANTS if one.name == name)


def failure_of(case: Case, fault: Mutant, prop: str = "model equality") -> Failure:
    with misread(fault.edit):
        failure = check_property(BY_NAME[prop], case, profile=FEW, seed=1, policy="").verdict.failure
    assert failure is not None
    return failure


def example(**values: object) -> Example:
    return Example({axis.name: values.get(axis.name, axis.simplest) for axis in AXES}, 7)


def test_an_example_is_made_simple_but_for_the_axes_that_matter() -> None:
    worst = Example({"a": 3, "b": "z", "c": True, "d": 5}, 999)
    least = minimise(worst, AXES, lambda one: one["a"] >= 2 and one["c"])
    assert (dict(least.values), least.seed) == ({"a": 2, "b": "x", "c": True, "d": 4}, 0)


def test_a_seed_that_matters_stays() -> None:
    worst = Example({"a": 3, "b": "z", "c": True, "d": 5}, 999)
    assert minimise(worst, AXES, lambda one: one.seed == 999).seed == 999


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


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "gpt_neox"])
@pytest.mark.parametrize("fault", MUTANTS, ids=lambda one: one.name)
def test_the_first_departing_stage_is_the_faulty_one(name: str, fault: Mutant) -> None:
    case = case_named(name)
    expected: set[str] = set()

    def edit(anatomy):  # type: ignore[no-untyped-def]
        wrong = fault.edit(anatomy)
        expected.update(fault.stages(anatomy) if wrong is not anatomy else ())
        return wrong

    with misread(edit), quiet():
        failure = search(MODEL_EQUALITY, case, replace_module, examples=40, seed=1).failure
        if not expected:
            pytest.skip(f"{name} has nothing to misread")
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


@pytest.mark.parametrize(
    ("name", "fault", "prop", "longest"),
    [
        ("gpt2", "attention scale", "model equality", 200),
        ("bert", "activation", "layer equality", 200),
        ("opt", "norm bias dropped", "cache", 200),
        ("llama", "attention output bias dropped", "contract", 1200),
        ("megatron", "norms swapped", "model equality", 1200),
    ],
)
def test_a_script_imports_nothing_of_the_harness_and_fails_with_the_fault_only(
    name: str, fault: str, prop: str, longest: int
) -> None:
    entry = next(entry for entry in CASES if entry.name == name)
    if entry.unavailable:
        pytest.skip(entry.unavailable)
    text = failure_of(entry.load(), mutant(fault), prop).script
    assert text is not None and len(text.splitlines()) < longest
    imports = [line.split()[1].partition(".")[0] for line in text.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert not {"harness", "cases", "reports"} & set(imports) and "torch" in imports
    assert run_here(text, replace_module)[0] == 0
    with misread(mutant(fault).edit):
        assert run_here(text, replace_module)[0] == 1


@pytest.mark.parametrize("prop", ["model equality", "cache"])
def test_a_script_run_by_itself_fails_with_a_faulty_policy_and_passes_with_the_honest_one(prop: str, tmp_path: Path) -> None:
    case = case_named("gpt2")
    policy = tmp_path / "faulty.py"
    policy.write_text(FAULTY_POLICY)
    space: dict[str, object] = {}
    exec(FAULTY_POLICY, space)
    example = case.simplest
    with quiet():
        text = script(BY_NAME[prop], case, example, space["replace_module"])  # type: ignore[arg-type]
    file = tmp_path / "failure.py"
    file.write_text(text)
    assert run(file, policy) == (1, 1)
    assert run(file, f"{policy}:DoubledScale") == (1, 1)
    assert run(file) == (0, 1)


def run(file: Path, *arguments: object) -> tuple[int, int]:
    """Exit status and number of lines said."""
    done = subprocess.run(
        [sys.executable, str(file), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=file.parent,
    )
    return done.returncode, len(done.stdout.splitlines())


def test_no_script_is_kept_that_does_not_show_the_failure() -> None:
    case = case_named("gpt2")
    with quiet(), pytest.raises(CannotWriteError, match="ended with 0"):
        script(MODEL_EQUALITY, case, case.simplest, replace_module)


def test_values_are_written_as_source_that_gives_them_back() -> None:
    value = {
        "ids": torch.arange(70).reshape(2, 35),
        "mask": torch.tensor([[-1.5, 0.25]]),
        "more": (1, [None, "a"], True),
    }
    again = eval(literal(value), {"torch": torch})  # the text is this test's own
    assert torch.equal(again["ids"], value["ids"]) and torch.equal(again["mask"], value["mask"])
    assert again["mask"].dtype is torch.float32 and again["more"] == value["more"]
    assert max(map(len, literal(value).splitlines())) <= 110


def test_a_value_without_a_form_as_source_is_refused_by_name() -> None:
    with pytest.raises(CannotWriteError, match="a object has no form as source"):
        literal(object())
    with pytest.raises(CannotWriteError, match="a tensor of 5000 elements is too long"):
        literal(torch.zeros(5000))


def test_a_covering_array_meets_every_pair_in_few_rows() -> None:
    rows = covering_array((2, 5, 3, 4))
    assert {(a, b) for _, a, _, b in rows} == {(a, b) for a in range(5) for b in range(4)}
    assert len(rows) <= 25


@pytest.mark.parametrize("entry", CASES, ids=lambda entry: entry.name)
def test_covering_examples_meet_every_claimed_pair_of_a_case(entry) -> None:  # type: ignore[no-untyped-def]
    if entry.unavailable:
        pytest.skip(entry.unavailable)
    axes = entry.load().axes
    met = {pair for one in covering_examples(axes, 3, 1000) for pair in tally(one)[1]}
    claimed = sorted((axis for axis in axes if axis.claimed), key=lambda axis: axis.name)
    assert met >= set(claimed_pairs(claimed))


def test_each_seed_meets_the_pairs_in_other_company() -> None:
    assert covering_examples(AXES, 1, 9) != covering_examples(AXES, 2, 9)
    assert covering_examples(AXES, 1, 9) == covering_examples(AXES, 1, 9)


class _Tally:
    def __init__(self, *examples: Example) -> None:
        from collections import Counter

        self.drawn = Counter(value for one in examples for value in tally(one)[0])
        self.pairs = frozenset(pair for one in examples for pair in tally(one)[1])


class _Case:
    name = "small"
    axes = AXES


def test_a_nightly_run_fails_for_a_claimed_value_that_was_never_met() -> None:
    found = coverage(_Case(), [_Tally(*(example(a=a, b=b) for a in (1, 2, 3) for b in "xyz"))])  # type: ignore[arg-type]
    assert found.missed[0] == "c=True"
    assert coverage_failure(found) == (
        "small: 7 claimed values and pairs were never met, c=True among them (15 of 21 claimed pairs were met)"
    )


def test_a_run_that_met_everything_claimed_does_not_fail() -> None:
    every = [example(a=a, b=b, c=c) for a in (1, 2, 3) for b in "xyz" for c in (False, True)]
    found = coverage(_Case(), [_Tally(*every)])  # type: ignore[arg-type]
    assert (found.missed, coverage_failure(found), found.axes["d"]) == ((), None, {"4": 18, "3": 0, "5": 0})


def test_a_property_that_compares_nothing_does_not_count_towards_coverage() -> None:
    case = case_named("gpt2")
    found = search(BY_NAME["revert"], case, replace_module, examples=3, seed=1)
    assert (found.examples, found.drawn, found.pairs) == (3, {}, set())


def test_what_counts_towards_coverage_is_what_was_judged_and_not_what_was_drawn() -> None:
    found = search(BY_NAME["cache"], case_named("bert"), replace_module, examples=6, seed=1)
    assert found.drawn["role", "encoder"] == 0 and sum(found.drawn["heads", n] for n in range(13)) >= 6


@pytest.mark.parametrize(("profile", "examples", "sentences"), [("nightly", None, 1), ("nightly", 10, 0), ("quick", None, 0)])
def test_only_a_nightly_run_of_full_depth_is_held_to_its_coverage(profile: str, examples: int | None, sentences: int) -> None:
    from types import SimpleNamespace

    from harness.cli.perform import _unmet

    found = coverage(_Case(), [_Tally(example())])  # type: ignore[arg-type]
    run = SimpleNamespace(coverage=(found,))
    plan = SimpleNamespace(profile=profile, examples=examples, properties=())
    assert len(_unmet(run, plan)) == sentences  # type: ignore[arg-type]
