"""The A/A lane and the self-test, in simulated time."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.timing.cpu import CpuDevice
from harness.timing.null_lane import null_lane
from harness.timing.selftest import UNITS, InjectedEffect, matrix_work, selftest
from harness.timing.tests import noise
from harness.timing.tests.noise import CALL_SECONDS, NoisyDevice


def _work(units):
    return lambda: CALL_SECONDS * units / UNITS


def test_the_null_lane_compares_each_call_with_itself_and_predicts_what_can_be_found():
    """The prediction holds: an effect of that size is found, a fifth of it is not."""
    lane = null_lane([_work(100), _work(300)], device=NoisyDevice(noise.two_clocks), comparisons=6, budget_seconds=2.0, seed=0)
    assert (len(lane.results), lane.alarms) == (6, 0)
    assert 1e-4 < lane.smallest_effect < 0.01
    assert lane.record().comparisons == 6

    def found(effect):
        results = noise.simulate(noise.two_clocks, effect=effect, comparisons=10, budget_seconds=2.0)
        return sum(result.ratio.high < 1 for result in results)

    assert found(lane.smallest_effect * 1.5) >= 9
    assert found(lane.smallest_effect / 5) <= 2


def test_a_louder_machine_has_a_larger_smallest_effect():
    """That is what the figure is for."""
    quiet, loud = (
        null_lane([_work(100)], device=NoisyDevice(model), comparisons=2, budget_seconds=1.0, seed=0).smallest_effect
        for model in (noise.quiet, noise.loud)
    )
    assert loud > 5 * quiet


def test_a_null_lane_without_calls_is_refused_and_without_intervals_claims_nothing():
    """No figure is better than a made-up one."""
    with pytest.raises(ValueError, match="at least one call"):
        null_lane([], device=NoisyDevice(), comparisons=1, budget_seconds=1.0, seed=0)
    assert null_lane([lambda: 1.0], device=NoisyDevice(), comparisons=1, budget_seconds=1.0, seed=0).smallest_effect is None


def test_the_self_test_counts_alarms_power_and_seconds_a_pair():
    """Two and three units more of a hundred are found, and measured as such."""
    steps = []
    outcome = selftest(
        NoisyDevice(),
        comparisons=12,
        effect_comparisons=4,
        work=_work,
        progress=lambda done, planned: steps.append((done, planned)),
    )
    assert (outcome.comparisons, outcome.alarms, outcome.complete) == (12, 0, True)
    assert [(injected.effect, injected.power) for injected in outcome.effects] == [(0.02, 1.0), (0.03, 1.0)]
    assert outcome.effects[1].measured == pytest.approx(0.03, abs=0.005)
    assert outcome.call_seconds == pytest.approx(CALL_SECONDS, rel=0.05)
    assert outcome.seconds_per_pair <= outcome.longest_seconds <= 5.0
    assert steps[-1] == (20, 20)
    assert any(line.startswith("A/A: 0 alarms in 12 comparisons (rate below 22.1%") for line in outcome.lines())


def test_a_self_test_cut_short_still_covers_every_kind():
    """Kinds are interleaved, and the outcome says that it is incomplete."""
    outcome = selftest(NoisyDevice(), comparisons=300, effect_comparisons=100, time_limit_seconds=25.0, work=_work)
    assert not outcome.complete
    assert outcome.comparisons > 0
    assert all(injected.comparisons > 0 for injected in outcome.effects)
    assert list(outcome.lines())[-1] == "incomplete: the time limit came first"


def test_a_self_test_without_time_for_one_comparison_claims_nothing():
    """The alarm rate may then be anything."""
    outcome = selftest(NoisyDevice(), time_limit_seconds=1.0, work=_work)
    assert (outcome.comparisons, outcome.alarm_bound, outcome.smallest_effect) == (0, 1.0, None)
    assert outcome.effects[0].power is None


@pytest.mark.parametrize(
    ("alarms", "comparisons", "kept"), [(0, 0, False), (0, 5, True), (1, 60, True), (3, 300, True), (9, 300, False)]
)
def test_a_self_test_fails_where_alarms_are_more_than_chance_explains(alarms: int, comparisons: int, kept: bool):
    """One alarm in a short self-test says nothing; no comparison shows nothing."""
    outcome = selftest(NoisyDevice(), time_limit_seconds=1.0, work=_work)
    assert dataclasses.replace(outcome, alarms=alarms, comparisons=comparisons).kept is kept


def test_a_self_test_whose_comparisons_gave_no_interval_says_so():
    """An effect is then counted and not measured."""
    outcome = selftest(NoisyDevice(), comparisons=12, effect_comparisons=4, work=_work)
    without = dataclasses.replace(outcome, effects=(InjectedEffect(effect=0.02, comparisons=4, found=0, measured=None),))
    assert "+2%: found in 0 of 4 (power 0%), no interval" in without.lines()


def test_an_effect_that_is_no_whole_number_of_units_is_refused():
    """It would be measured as another one."""
    with pytest.raises(ValueError, match=r"positive multiple of 1%, got 2\.500%"):
        selftest(NoisyDevice(), effects=(0.025,), work=_work)


def test_extra_units_are_real_work():
    """The default work is matrix products, as many as asked for."""

    work = matrix_work(CpuDevice(), sizes=(16,))
    flops = []
    for units in (UNITS, UNITS + 3):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work(units)()
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(1.03)
