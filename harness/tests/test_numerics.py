"""Errors are relative to the original's scale, and incomparable outputs say what makes them so."""

from __future__ import annotations

import math

import pytest
import torch

from harness.numerics import EXACT_TOLERANCE, alive, gap
from reports import record


def test_the_error_is_relative_to_the_largest_expected_value() -> None:
    assert gap(torch.tensor([4.0, 0.0]), torch.tensor([4.0, 1.0])).error == 0.25


def test_reports_tell_which_stage_departs_by_the_tolerance_of_exact_mode() -> None:
    """They know nothing of the harness, and scripts of failures know nothing of them."""
    assert record.EXACT_TOLERANCE == EXACT_TOLERANCE


def test_equal_outputs_have_no_error() -> None:
    assert gap(torch.ones(3), torch.ones(3)).within(0.0)


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        (None, "expected a tensor, got NoneType"),
        (torch.ones(2), r"expected shape (3,), got (2,)"),
        (torch.ones(3, dtype=torch.float64), "expected torch.float32, got torch.float64"),
        (torch.tensor([1.0, math.nan, 1.0]), "not finite where the original is"),
    ],
)
def test_incomparable_outputs_are_a_problem_and_within_no_tolerance(actual: object, words: str) -> None:
    found = gap(torch.ones(3), actual)
    assert (found.problem, found.error) == (words, math.inf)
    assert not found.within(math.inf)


def test_only_valid_positions_count() -> None:
    expected, actual = torch.ones(1, 2, 3), torch.ones(1, 2, 3)
    actual[0, 1] = 7.0
    assert gap(expected, actual, torch.tensor([[True, False]])).error == 0.0
    assert gap(expected, actual, torch.tensor([[True, True]])).error == 6.0


def test_positions_that_do_not_count_must_still_be_finite() -> None:
    actual = torch.ones(1, 2, 3)
    actual[0, 1] = math.inf
    assert gap(torch.ones(1, 2, 3), actual, torch.tensor([[True, False]])).problem is not None


def test_an_infinite_output_of_the_original_asks_nothing_of_the_replacement_there() -> None:
    expected = torch.tensor([[[math.nan], [1.0]]])
    assert gap(expected, torch.ones(1, 2, 1), torch.tensor([[False, True]])).within(0.0)


def test_nothing_expected_and_something_found_is_infinitely_wrong() -> None:
    assert gap(torch.zeros(2), torch.tensor([0.0, 1e-30])).error == math.inf
    assert gap(torch.zeros(2), torch.zeros(2)).error == 0.0


def test_outputs_that_show_nothing_are_dead() -> None:
    assert alive({}, None) == "no output was compared"
    assert alive({"out": torch.ones(2, 3)}, None) == "the original's out is constant"
    assert alive({"out": torch.tensor([1.0, math.nan])}, None) == "the original's out is not finite"
    assert alive({"out": torch.rand(1, 2, 3)}, torch.zeros(1, 2, dtype=torch.bool)) == "out has no position that counts"
    assert alive({"out": torch.tensor([1.0, 2.0])}, None) is None


def test_where_no_position_counts_nothing_differs_and_nothing_is_alive() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert gap(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), nothing).error == 0.0
    assert alive({"y": torch.ones(1, 2, 3)}, nothing) == "y has no position that counts"


def test_single_elements_are_compared_and_need_not_vary() -> None:
    assert gap(torch.tensor([2.0]), torch.tensor([1.0])).error == 0.5
    assert alive({"y": torch.tensor([2.0])}, None) is None


def test_two_equal_elements_are_constant_and_two_different_ones_are_not() -> None:
    assert alive({"y": torch.tensor([2.0, 2.0])}, None) == "the original's y is constant"
    assert alive({"y": torch.tensor([2.0, 1.0])}, None) is None


def test_an_expected_zero_is_met_by_zero_alone() -> None:
    assert gap(torch.zeros(3), torch.zeros(3)).error == 0.0
    assert gap(torch.zeros(3), torch.full((3,), 1e-30)).error == math.inf
