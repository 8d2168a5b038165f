"""Unsteady samples are named, with what to do; steady ones are not."""

import itertools

import numpy as np
import pytest

from harness.timing.stability import instabilities
from harness.timing.tests import noise


def _samples(model, *, count=400, seed=0):
    factors = list(itertools.islice(model(np.random.default_rng(seed)), 2 * count))
    return factors[0::2], factors[1::2]


@pytest.mark.parametrize("model", [noise.quiet, noise.heavy_tails])
def test_steady_samples_give_no_warning(model):
    """Interruptions alone are ordinary."""
    assert all(instabilities(*_samples(model, seed=seed)) == () for seed in range(20))


def test_drift_is_named_with_its_size():
    """As when a cold machine warms up."""
    (warning,) = instabilities(*_samples(noise.drift, count=1000))
    assert warning.startswith("drift: both sides became 20% slower while being timed; warm up longer")


def test_two_clock_levels_are_named_for_each_side():
    """As when a turbo clock comes and goes."""
    baseline, subject = instabilities(*_samples(noise.two_clocks))
    assert baseline.startswith("two levels: ")
    assert "of the baseline's samples" in baseline
    assert "40% above; fix the clock frequency" in subject


def test_wide_spread_is_named_for_each_side():
    """As under other load."""
    rng = np.random.default_rng(0)
    baseline, subject = instabilities(*np.exp(0.3 * rng.standard_normal((2, 200))))
    assert baseline.startswith("spread: the baseline's middle half of samples differs by")
    assert subject.startswith("spread: the subject's")


def test_equal_samples_and_few_samples_give_no_warning():
    """A coarse clock may repeat itself."""
    assert instabilities([1.0] * 50, [1.0] * 50) == ()
    assert instabilities([1.0, 2.0], [1.0, 5.0]) == ()


def test_slow_calls_of_one_side_only_are_named():
    """The verdict goes by the fast calls, so a second code path must not pass unseen."""
    rng = np.random.default_rng(0)
    baseline = np.exp(0.01 * rng.standard_normal(400))
    subject = np.exp(0.01 * rng.standard_normal(400)) * np.where(rng.random(400) < 0.5, 1.3, 1.0)
    warnings = {warning.split(":")[0]: warning for warning in instabilities(baseline, subject)}
    assert set(warnings) == {"shape", "two levels"}
    assert "the subject has slow calls of its own" in warnings["shape"]
