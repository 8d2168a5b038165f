"""Looks are planned, and what they spend adds up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.timing.statistics import Judgement, judge
from harness.timing.stopping import FIRST_LOOK_BLOCKS, plan_looks, settled
from reports.record import Interval


@given(st.integers(1, 5000))
def test_the_allowances_of_all_looks_add_up_to_one(maximum):
    """So the union bound gives the stated confidence."""
    looks = plan_looks(maximum)
    assert sum(look.share for look in looks) == pytest.approx(1)
    assert looks[-1].blocks == maximum
    assert [look.blocks for look in looks] == sorted({look.blocks for look in looks})
    assert len(looks) == 1 or looks[0].blocks >= FIRST_LOOK_BLOCKS


def test_looks_are_halvings_of_the_last_down_to_the_first():
    """Half of the allowance is kept for the last."""
    assert [look.blocks for look in plan_looks(1024)] == [32, 64, 128, 256, 512, 1024]
    assert [look.blocks for look in plan_looks(2 * FIRST_LOOK_BLOCKS)] == [FIRST_LOOK_BLOCKS, 2 * FIRST_LOOK_BLOCKS]
    assert [look.share for look in plan_looks(2 * FIRST_LOOK_BLOCKS)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("verdict", "low", "estimate", "high", "enough"),
    [
        ("FASTER", 1.02, 1.0245, 1.029, True),  # half-width 0.44 %, below half the margin
        ("FASTER", 1.02, 1.026, 1.033, False),  # 0.63 %
        ("SLOWER", 0.48, 0.5, 0.53, True),  # 5.0 %, below a tenth of the effect
        ("SLOWER", 0.45, 0.5, 0.55, False),  # 10 %
        ("SAME", 0.99, 1.0, 1.01, True),
        ("AMBIGUOUS", 0.9999, 1.0, 1.0001, False),
    ],
)
def test_a_difference_is_settled_by_its_width_sameness_at_once_and_doubt_never(verdict, low, estimate, high, enough):
    """Widths count on both sides of the estimate, as logarithms."""
    ratio = Interval(low=low, estimate=estimate, high=high, confidence=0.99)
    judgement = Judgement(verdict=verdict, reason="", ratio=ratio, standard_error=0.0)
    assert settled(judgement) == enough


def test_looking_often_at_full_allowance_raises_alarms_and_planned_looks_do_not():
    """Optional stopping, on equal sides with noise: 20 looks at 95 % against the planned ones at 95 %."""
    rng = np.random.default_rng(1)
    looks = plan_looks(128)
    naive = planned = 0
    trials = 300
    for _ in range(trials):
        baseline, subject = np.exp(0.1 * rng.standard_normal((2, 256)))

        def alarm(blocks, share, baseline=baseline, subject=subject):
            judgement = judge(baseline[: 2 * blocks], subject[: 2 * blocks], confidence=0.95, share=share)
            return judgement.verdict in ("FASTER", "SLOWER")

        naive += any(alarm(blocks, 1.0) for blocks in range(16, 129, 6))
        planned += any(alarm(look.blocks, look.share) for look in looks)
    assert naive / trials > 0.12
    assert planned / trials <= 0.05


def test_a_verdict_is_settled_when_more_samples_would_change_nothing():
    """SAME and VOID at once, a difference when it is known to a tenth, AMBIGUOUS never."""
    wide = judge([1.3, 1.7] * 8, [1.0, 1.0] * 8)
    narrow = judge([1.5, 1.5001] * 8, [1.0, 1.0] * 8)
    assert (wide.verdict, settled(wide)) == ("FASTER", True)  # blocks average the two pairs
    assert (narrow.verdict, settled(narrow)) == ("FASTER", True)
    uneven = judge([1.05, 1.05, 1.4, 1.4] * 8, [1.0] * 32)
    assert (uneven.verdict, settled(uneven)) == ("FASTER", False)
    assert settled(judge([1.0] * 16, [1.0] * 16))
    assert settled(judge([1.0] * 16, [0.0] * 16))
    assert not settled(judge([1.0] * 4, [1.0] * 4))
