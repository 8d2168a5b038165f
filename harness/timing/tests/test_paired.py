"""The sampling loop, in simulated time."""

import gc

import pytest

from harness.timing.devices import Conditions
from harness.timing.paired import MAXIMUM_BLOCKS, compare
from harness.timing.statistics import judge
from harness.timing.tests import noise
from harness.timing.tests.noise import CALL_SECONDS, NoisyDevice, share, simulate


def _compare(baseline=CALL_SECONDS, subject=CALL_SECONDS, *, model=noise.quiet, budget=5.0, seed=0, **options):
    device = NoisyDevice(model, seed=seed)
    return compare(lambda: baseline, lambda: subject, device=device, budget_seconds=budget, seed=seed, **options), device


@pytest.mark.parametrize("model", [noise.drift, noise.busy, noise.resonant, noise.recorded], ids=lambda model: model.__name__)
def test_equal_calls_raise_no_alarm_and_three_percent_is_found(model):
    """Larger simulations: ``python -m harness.timing.tests.noise``."""
    assert share(simulate(model, effect=0.0, comparisons=6), "FASTER", "SLOWER") == 0
    assert share(simulate(model, effect=0.03, comparisons=6), "SLOWER") == 1


def test_the_same_seed_measures_in_the_same_order():
    """The order is random but reproducible."""
    first, _ = _compare(seed=4)
    again, _ = _compare(seed=4)
    assert first == again


def test_each_block_takes_both_sides_twice_in_either_order():
    """ABBA or BAAB, both in use."""
    order = []
    device = NoisyDevice()

    def side(name):
        def call():
            order.append(name)
            return CALL_SECONDS

        return call

    result = compare(side("A"), side("B"), device=device, budget_seconds=1.0, seed=0)
    measured = "".join(order)[-2 * result.pairs :]
    blocks = {measured[start : start + 4] for start in range(0, len(measured), 4)}
    assert blocks == {"ABBA", "BAAB"}


def test_a_comparison_stops_early_when_settled_and_within_budget_otherwise():
    """Precision or time, whichever comes first."""
    clear, _ = _compare(subject=CALL_SECONDS / 2)
    assert (clear.verdict, clear.pairs < clear.planned_pairs, clear.seconds < 1.0) == ("FASTER", True, True)
    noisy, _ = _compare(model=noise.loud, budget=2.0)
    assert noisy.seconds <= 2.0 * 1.01


def test_stored_samples_can_be_judged_again():
    """The record holds what the verdict was drawn from."""
    result, _ = _compare(subject=CALL_SECONDS * 1.5)
    again = judge(result.baseline_seconds, result.subject_seconds)
    assert again.verdict == result.verdict == "SLOWER"
    assert again.ratio.estimate == result.ratio.estimate
    assert len(result.baseline_seconds) == len(result.subject_seconds) == result.pairs


def test_short_calls_are_batched_equally_on_both_sides():
    """A sample lasts half a millisecond at least, judged by the faster side."""
    result, _ = _compare(baseline=1e-4, subject=5e-6, budget=20.0)
    assert 90 <= result.calls_per_sample <= 110
    assert result.planned_pairs <= 2 * MAXIMUM_BLOCKS


def test_where_a_call_takes_long_beside_what_is_timed_samples_are_short_rather_than_few():
    """As on a GPU whose stream is held, for 40 microseconds, until the host has asked for a call."""

    class Held(NoisyDevice):
        def seconds(self, call, calls, clock="end_to_end"):
            self._now += 2e-3 * calls
            return super().seconds(call, calls, clock)

    result = compare(lambda: 44e-6, lambda: 40e-6, device=Held(noise.quiet), budget_seconds=0.8, seed=0)
    assert (result.verdict, result.calls_per_sample) == ("FASTER", 2)


def test_a_budget_that_is_too_short_measures_one_block_and_says_what_is_needed():
    """Slow calls cannot be judged from nothing."""
    result, _ = _compare(baseline=3.0, subject=1.0, budget=5.0)
    assert (result.verdict, result.pairs) == ("AMBIGUOUS", 2)
    assert "1 block of 4 samples cannot carry a 99% interval" in result.reason


def test_the_garbage_collector_is_held_off_and_given_back():
    """Also when a call fails."""
    states = []

    def call():
        states.append(gc.isenabled())
        return CALL_SECONDS

    def fails():
        raise RuntimeError("no kernel")

    compare(call, call, device=NoisyDevice(), budget_seconds=0.1, seed=0)
    assert not any(states)
    with pytest.raises(RuntimeError, match="no kernel"):
        compare(call, fails, device=NoisyDevice(), budget_seconds=0.1, seed=0)
    assert gc.isenabled()


def test_warnings_join_disturbances_of_the_device_and_unsteady_samples():
    """Each says what to do."""

    class Throttled(NoisyDevice):
        def conditions(self):
            return Conditions(at=self.now(), clock_hertz=1e9 / (1 + self.now()), throttling=("the power limit is reached",))

    device = Throttled(noise.two_clocks)
    result = compare(lambda: CALL_SECONDS, lambda: CALL_SECONDS, device=device, budget_seconds=3.0, seed=0)
    assert {warning.split(":")[0] for warning in result.warnings} == {"clock", "throttling", "two levels"}


def test_a_side_that_does_nothing_voids_the_row():
    """Nobody is fifty times faster."""
    result, _ = _compare(subject=CALL_SECONDS / 500)
    assert result.verdict == "VOID"
    assert "check that both sides compute their output in full" in result.reason


def test_no_budget_is_refused():
    """The message says the rule and the value."""
    with pytest.raises(ValueError, match=r"budget_seconds must be positive, got 0\.0"):
        _compare(budget=0.0)
