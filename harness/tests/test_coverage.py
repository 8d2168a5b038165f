"""Examples meet every pair of values that a case claims, and a nightly run that did not is told so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import CASES
from harness.case import Axis, Example
from harness.coverage import claimed_pairs, coverage, coverage_failure, tally
from harness.covering import SEEDS, chosen_by, covering_array, covering_examples
from harness.properties import BY_NAME
from harness.properties.base import Property
from harness.properties.in_lower import ASKED, IN_LOWER
from harness.search import search, seed_of
from policies import replace_module
from reports.record import Coverage

from .mutants import case_named

AXES = (Axis("a", (1, 2, 3)), Axis("b", ("x", "y", "z")), Axis("c", (False, True)), Axis("d", (4, 3, 5), claimed=False))


def example(**values: object) -> Example:
    return Example({axis.name: values.get(axis.name, axis.simplest) for axis in AXES}, 7)


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


@pytest.mark.parametrize("prop", IN_LOWER, ids=lambda prop: prop.name)
@given(seed=st.integers(0, 2**16), parts=st.integers(1, len(ASKED)))
def test_whatever_is_asked_by_turns_in_lower_dtypes_is_asked_at_least_once(prop: Property, seed: int, parts: int) -> None:
    planned = covering_examples((Axis("a", range(7)), Axis("b", range(8))), seed_of(seed, prop), prop.least)
    assert {chosen_by(one.seed, range(parts)) for one in planned} == set(range(parts))


@given(st.integers(0, 2**32), st.integers(2, 10), st.sampled_from((3, 14, 40)))
def test_few_examples_meet_every_remainder_and_every_part_of_all_seeds(seed: int, parts: int, most: int) -> None:
    seeds = [one.seed for one in covering_examples((Axis("a", range(7)), Axis("b", range(8))), seed, most)]
    assert len(seeds) == most and max(seeds) < SEEDS
    assert len({one % parts for one in seeds}) == min(parts, most)
    assert len({one * parts // SEEDS for one in seeds}) == parts or most < 2 * parts


@given(st.integers(0, 2**32), st.integers(2, 10))
def test_the_first_of_many_examples_meet_every_remainder(seed: int, parts: int) -> None:
    seeds = [one.seed for one in covering_examples((Axis("a", range(7)), Axis("b", range(8))), seed, 56)]
    assert len(set(seeds)) == 56 and {one % parts for one in seeds[:16]} == set(range(parts))


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
        "small: 7 claimed values and pairs were never judged, c=True among them (15 of 21 claimed pairs were met)"
    )


def test_what_a_nightly_run_names_is_a_value_before_a_pair_whatever_the_value_is_called() -> None:
    value = "role=decoder with cross-attention"
    found = Coverage(case="bert", axes={}, missed=(f"heads=1 with {value}", value))
    assert coverage_failure(found) == (
        f"bert: 2 claimed values and pairs were never judged, {value} among them (0 of 0 claimed pairs were met)"
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
