"""What ``judge`` promises, whatever the samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.timing import statistics
from harness.timing.statistics import block_log_ratios, blocks_needed, hodges_lehmann, judge, signed_rank_critical

seconds = st.floats(1e-6, 10.0)
blocks = st.integers(0, 40).flatmap(lambda count: st.lists(st.tuples(seconds, seconds), min_size=2 * count, max_size=2 * count))
MIRROR = {"FASTER": "SLOWER", "SLOWER": "FASTER"}


def _sides(pairs):
    return [a for a, _ in pairs], [b for _, b in pairs]


def _noisy(ratio, *, count=200, spread=0.02, seed=0):
    rng = np.random.default_rng(seed)
    subject = 1e-3 * np.exp(spread * rng.standard_normal(count))
    baseline = 1e-3 * ratio * np.exp(spread * rng.standard_normal(count))
    return baseline.tolist(), subject.tolist()


@given(blocks)
def test_exchanging_the_sides_mirrors_the_verdict_and_inverts_the_ratio(pairs):
    """Neither side is favoured."""
    baseline, subject = _sides(pairs)
    there, back = judge(baseline, subject), judge(subject, baseline)
    assert back.verdict == MIRROR.get(there.verdict, there.verdict)
    if there.ratio:
        assert there.ratio.low == pytest.approx(1 / back.ratio.high)
        assert there.ratio.estimate == pytest.approx(1 / back.ratio.estimate)


@given(blocks, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(pairs, unit):
    """Only ratios enter."""
    baseline, subject = _sides(pairs)
    scaled = judge([unit * a for a in baseline], [unit * b for b in subject], plausible_ratio=1e9)
    plain = judge(baseline, subject, plausible_ratio=1e9)
    if plain.ratio:
        assert scaled.ratio.estimate == pytest.approx(plain.ratio.estimate)
        assert scaled.ratio.low <= scaled.ratio.estimate <= scaled.ratio.high


@given(blocks)
def test_every_verdict_has_a_reason_and_agrees_with_its_interval(pairs):
    """The verdict is a reading of the interval and nothing else."""
    judgement = judge(*_sides(pairs))
    assert judgement.reason
    if judgement.ratio and judgement.verdict != "VOID":
        ratio = judgement.ratio
        inside = ratio.low >= 1 / 1.01 and ratio.high <= 1.01
        assert (judgement.verdict == "SAME") == inside
        assert (judgement.verdict == "FASTER") == (ratio.low > 1 and ratio.estimate > 1.01 and not inside)
        assert (judgement.verdict == "SLOWER") == (ratio.high < 1 and ratio.estimate < 1 / 1.01 and not inside)


@given(st.integers(1, 14), st.floats(0.001, 0.4))
def test_the_critical_rank_sum_is_the_largest_that_keeps_the_level(count, alpha):
    """Counted against every assignment of signs."""
    signs = np.array(np.meshgrid(*[[0, 1]] * count)).reshape(count, -1)
    rank_sums = np.arange(1, count + 1) @ signs
    critical = signed_rank_critical(count, alpha)
    if critical is None:
        assert np.mean(rank_sums <= 0) > alpha / 2
        assert count < blocks_needed(alpha)
    else:
        assert np.mean(rank_sums <= critical) <= alpha / 2 < np.mean(rank_sums <= critical + 1)
        assert count >= blocks_needed(alpha)


@pytest.mark.parametrize("count", [61, 128, 300])
@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
def test_the_normal_limit_for_many_blocks_is_close_and_never_narrower(monkeypatch, count, alpha):
    """Against counting, which it replaces."""
    limit = signed_rank_critical(count, alpha)
    monkeypatch.setattr(statistics, "_EXACT_BLOCKS", count)
    exact = signed_rank_critical(count, alpha)
    assert 0.97 * exact < limit <= exact


def test_the_interval_agrees_with_the_signed_rank_test_of_scipy():
    """A shift lies in the interval just when the test of that shift does not reject."""
    differences = np.random.default_rng(3).standard_normal(25)
    _, low, high = hodges_lehmann(differences, 0.05)
    for shift, inside in ((low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)):
        assert (stats.wilcoxon(differences - shift, method="exact").pvalue > 0.05) == inside


def test_one_wild_sample_does_not_move_the_estimate():
    """A sample that took a thousand times longer costs precision only."""
    baseline, subject = _noisy(1.1)
    before = judge(baseline, subject).ratio.estimate
    baseline[17] *= 1000
    assert judge(baseline, subject).ratio.estimate == pytest.approx(before, rel=2e-3)


@pytest.mark.parametrize(
    ("ratio", "verdict", "words"),
    [(1.25, "FASTER", "20.00% less time"), (1.0, "SAME", "equal within 1.00%"), (0.8, "SLOWER", "25.00% more time")],
)
def test_the_reason_gives_the_figures(ratio, verdict, words):
    """Percentages of time, as people say them."""
    judgement = judge(*_noisy(ratio, spread=1e-5))
    assert judgement.verdict == verdict
    assert words in judgement.reason


@pytest.mark.parametrize("subject_is", ["faster", "slower"])
def test_a_difference_that_is_shown_but_looks_negligible_is_ambiguous(subject_is):
    """The interval excludes equality and reaches beyond the margin, the estimate does not."""
    fast, slow = _noisy(1.008, count=400)[::-1]
    judgement = judge(slow, fast) if subject_is == "faster" else judge(fast, slow)
    assert not judgement.ratio.low <= 1 <= judgement.ratio.high
    assert judgement.verdict == "AMBIGUOUS"
    assert "allows both a difference that does not matter and a difference beyond 1.00%" in judgement.reason


@pytest.mark.parametrize("count", [400, 4000])
def test_the_standard_error_is_that_of_a_mean_of_blocks_or_a_little_more(count):
    """Normal noise of a spread s in every sample: a block of two pairs has a log ratio of spread s, and n of them s / sqrt(n)."""
    judgement = judge(*_noisy(1.0, count=count, spread=0.01))
    assert 1.0 <= judgement.standard_error / (0.01 / math.sqrt(count / 2)) <= 1.45


def test_an_ambiguous_verdict_says_what_would_settle_it():
    """More budget, by the square of what the interval is too wide."""
    judgement = judge(*_noisy(1.0, spread=0.3))
    half_width = math.log(judgement.ratio.high / judgement.ratio.low) / 2
    factor = (half_width / (math.log(1.01) / 2)) ** 2
    assert (judgement.verdict, factor > 2) == ("AMBIGUOUS", True)
    assert "allows both equality and a difference" in judgement.reason
    assert f"about {factor:.0f} times the budget, or a quieter machine, would settle it" in judgement.reason


def test_too_few_blocks_are_ambiguous_and_say_how_many_are_needed():
    """Seven differences of one sign have a probability of 1.6 %, so no 99 % interval exists."""
    judgement = judge([2.0] * 14, [1.0] * 14)
    assert (judgement.verdict, judgement.ratio) == ("AMBIGUOUS", None)
    assert judgement.reason == "7 blocks of 4 samples cannot carry a 99% interval, 8 can: raise the time budget"
    assert judge([2.0] * 16, [1.0] * 16).verdict == "FASTER"


@pytest.mark.parametrize("wrong", [0.0, -1e-9, math.nan, math.inf])
def test_a_time_that_is_not_positive_voids_the_row(wrong):
    """A clock that does not advance measures nothing."""
    judgement = judge([1.0] * 20, [1.0] * 19 + [wrong])
    assert (judgement.verdict, judgement.ratio) == ("VOID", None)


def test_an_implausible_ratio_voids_the_row():
    """A call that is a hundred times faster did not do its work."""
    judgement = judge([1.0] * 40, [0.01] * 40)
    assert judgement.verdict == "VOID"
    assert judgement.reason.startswith("a ratio of 100 is not plausible (limit 50 either way)")
    assert judge([0.01] * 40, [1.0] * 40).verdict == "VOID"
    assert judge([1.0] * 40, [0.9 / 40] * 40).verdict == "FASTER"
    assert judge([0.9 / 40] * 40, [1.0] * 40).verdict == "SLOWER"


@pytest.mark.parametrize(("baseline", "subject"), [(4, 6), (3, 3)])
def test_samples_that_do_not_form_blocks_are_refused(baseline, subject):
    """Two pairs a block, both sides equally many."""
    with pytest.raises(ValueError, match="keep whole blocks only"):
        judge([1.0] * baseline, [1.0] * subject)
    with pytest.raises(ValueError, match="keep whole blocks only"):
        block_log_ratios([1.0] * baseline, [1.0] * subject)
