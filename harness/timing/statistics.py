"""From paired samples to an interval and a verdict.

Requirements this file must meet:

* Validity comes from the randomised order, not from a model of the noise. Within a block the order is ABBA or BAAB by a
  fair coin, so when both sides cost the same, exchanging their names in a group of blocks only flips the sign of the
  group's log ratio: log ratios are symmetric about zero and their signs independent, whatever the noise does (drift, heavy
  tails, autocorrelation, several clock levels). The signed-rank test needs exactly that and no more.
* Interruptions only ever add time, and on a shared machine a third of all samples may be interrupted. So a group is compared
  by the lower quartiles of its sides' samples, that is by calls that were left alone, and the ratio is the Hodges-Lehmann
  median over the groups. On recorded series this cuts the standard error of means of blocks to a quarter where other programs
  come and go, to a twelfth where they fill every core, and costs a tenth where noise is symmetric.
* Every verdict has its reason in words, with the figures that led to it.
* ``judge`` is a pure function of the samples.

Sources: M. Hollander, D. Wolfe, E. Chicken, "Nonparametric Statistical Methods", 3rd ed., sections 3.1 to 3.3 (signed-rank
test, Hodges-Lehmann estimate, Tukey's interval); R. A. Fisher, "The Design of Experiments" (randomisation as the basis
of the test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.record import Interval, TimingVerdict
from reports.wording import count

PAIRS_IN_BLOCK = 2
MARGIN = 0.01
"""Relative difference that nobody minds."""
CONFIDENCE = 0.99
PLAUSIBLE_RATIO = 50.0
"""Beyond this factor either way a row is void: no fusion of one layer does that, an output that is never computed does."""
_LARGEST_GROUP = 4
_FEWEST_GROUPS = 32
_EXACT_BLOCKS = 60
"""Up to here the signed-rank distribution is counted exactly; beyond, its normal limit is close and errs towards width."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the samples say about one comparison."""

    verdict: TimingVerdict
    reason: str
    ratio: Interval | None
    """Baseline time over subject time; None where no interval can be given."""
    standard_error: float | None
    """Of the log ratio; what a further comparison's precision is predicted from."""


def block_log_ratios(baseline_seconds: Sequence[float], subject_seconds: Sequence[float]) -> np.ndarray:
    """Log of baseline time over subject time, averaged within each block: interruptions count in full.

    Takes seconds a call, one per pair, ``PAIRS_IN_BLOCK`` successive pairs a block; returns shape ``(blocks,)``.
    Raises ``ValueError`` when the sides differ in length or do not fill whole blocks.
    """
    _check_whole_blocks(len(baseline_seconds), len(subject_seconds))
    log_ratios = np.log(np.asarray(baseline_seconds, dtype=float)) - np.log(np.asarray(subject_seconds, dtype=float))
    return np.asarray(log_ratios.reshape(-1, PAIRS_IN_BLOCK).mean(axis=1))


def group_log_ratios(baseline_seconds: Sequence[float], subject_seconds: Sequence[float]) -> np.ndarray:
    """Log of baseline time over subject time, each the lower quartile of its samples in a group of successive blocks.

    Takes what ``block_log_ratios`` takes; returns shape ``(groups,)``. A group has up to ``_LARGEST_GROUP`` blocks, as many as
    leave ``_FEWEST_GROUPS`` groups; blocks that do not fill the last group are left out. Grouping knows only how many blocks
    there are, never which side is which.
    """
    _check_whole_blocks(len(baseline_seconds), len(subject_seconds))
    blocks = len(baseline_seconds) // PAIRS_IN_BLOCK
    size = min(_LARGEST_GROUP, max(1, blocks // _FEWEST_GROUPS))
    kept = blocks // size * size * PAIRS_IN_BLOCK
    logs = np.log(np.array([baseline_seconds[:kept], subject_seconds[:kept]], dtype=float))
    quartiles = np.quantile(logs.reshape(2, -1, size * PAIRS_IN_BLOCK), 0.25, axis=2) if kept else np.zeros((2, 0))
    return np.asarray(quartiles[0] - quartiles[1])


def _check_whole_blocks(baseline: int, subject: int) -> None:
    if baseline != subject or baseline % PAIRS_IN_BLOCK:
        raise ValueError(
            f"both sides need the same number of samples, {PAIRS_IN_BLOCK} a block; got {baseline} of the baseline and "
            f"{subject} of the subject: keep whole blocks only"
        )


def signed_rank_critical(blocks: int, alpha: float) -> int | None:
    """Largest ``c`` with P(W <= c) <= alpha / 2, for W the signed-rank statistic of ``blocks`` symmetric differences.

    None where even c = 0 is too likely, that is where ``blocks`` are too few for ``alpha``.
    """
    if blocks > _EXACT_BLOCKS:
        mean = blocks * (blocks + 1) / 4
        deviation = math.sqrt(blocks * (blocks + 1) * (2 * blocks + 1) / 24)
        return math.floor(mean - float(stats.norm.isf(alpha / 2)) * deviation - 0.5)
    ways = np.ones(1)
    for rank in range(1, blocks + 1):  # each rank is either counted in W or not: multiply by (1 + x**rank)
        ways = np.concatenate([ways, np.zeros(rank)]) + np.concatenate([np.zeros(rank), ways])
    below = np.cumsum(ways) * 0.5**blocks
    critical = int(np.searchsorted(below, alpha / 2, side="right")) - 1
    return critical if critical >= 0 else None


def blocks_needed(alpha: float) -> int:
    """Fewest blocks from which a two-sided interval of level ``1 - alpha`` can be formed at all."""
    return math.ceil(math.log2(2 / alpha))


def hodges_lehmann(differences: np.ndarray, alpha: float) -> tuple[float, float, float] | None:
    """Estimate, lower and upper bound of the centre of symmetry of ``differences``, shape ``(n,)``, at level ``1 - alpha``.

    None where ``n`` is too small for the level.
    """
    critical = signed_rank_critical(len(differences), alpha)
    if critical is None:
        return None
    first, second = np.triu_indices(len(differences))
    walsh = (differences[first] + differences[second]) / 2
    size = len(walsh)
    middle = ((size - 1) // 2, size // 2)
    ordered = np.partition(walsh, sorted({critical, *middle, size - 1 - critical}))
    estimate = (ordered[middle[0]] + ordered[middle[1]]) / 2
    return float(estimate), float(ordered[critical]), float(ordered[size - 1 - critical])


def judge(
    baseline_seconds: Sequence[float],
    subject_seconds: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    share: float = 1.0,
    plausible_ratio: float = PLAUSIBLE_RATIO,
) -> Judgement:
    """Judge one comparison from seconds a call, one per pair, ``PAIRS_IN_BLOCK`` successive pairs a block.

    SAME claims that the whole interval lies within ``MARGIN``; FASTER and SLOWER that the interval excludes equality and the
    estimate lies beyond the margin; the rest is AMBIGUOUS.
    ``share`` is the part of the error allowance ``1 - confidence`` that this look at the data may spend (see
    ``stopping``); the interval is widened accordingly, so that ``confidence`` holds over all looks together.
    A ratio beyond ``plausible_ratio`` either way, or a time that is not positive, voids the comparison.
    Raises ``ValueError`` for samples that do not form whole blocks.
    """
    _check_whole_blocks(len(baseline_seconds), len(subject_seconds))
    times = np.array([baseline_seconds, subject_seconds], dtype=float)
    if not (np.isfinite(times) & (times > 0)).all():
        return _without_interval("VOID", "a sample is not a positive time: the clock did not advance; time more calls a sample")
    differences = group_log_ratios(baseline_seconds, subject_seconds)
    alpha = (1 - confidence) * share
    bounds = hodges_lehmann(differences, alpha)
    if bounds is None:
        return _without_interval(
            "AMBIGUOUS",
            f"{count(len(differences), 'block')} of 4 samples cannot carry a {confidence:.0%} interval, "
            f"{blocks_needed(alpha)} can: "
            "raise the time budget",
        )
    estimate, low, high = (math.exp(bound) for bound in bounds)
    ratio = Interval(estimate=estimate, low=low, high=high, confidence=confidence)
    standard_error = (bounds[2] - bounds[1]) / 2 / float(stats.norm.isf(alpha / 2))
    verdict, reason = _verdict(ratio, plausible_ratio=plausible_ratio)
    return Judgement(verdict=verdict, reason=reason, ratio=ratio, standard_error=standard_error)


def _without_interval(verdict: TimingVerdict, reason: str) -> Judgement:
    return Judgement(verdict=verdict, reason=reason, ratio=None, standard_error=None)


def _verdict(ratio: Interval, *, plausible_ratio: float) -> tuple[TimingVerdict, str]:
    spread = f"{ratio.confidence:.0%} interval {ratio.low:.4g} to {ratio.high:.4g}"
    if not 1 / plausible_ratio <= ratio.estimate <= plausible_ratio:
        return "VOID", (
            f"a ratio of {ratio.estimate:.3g} is not plausible (limit {plausible_ratio:.3g} either way): "
            "check that both sides compute their output in full and that the device was synchronised"
        )
    if ratio.low >= 1 / (1 + MARGIN) and ratio.high <= 1 + MARGIN:
        return "SAME", f"equal within {MARGIN:.2%}: {spread}"
    if ratio.low > 1 and ratio.estimate > 1 + MARGIN:
        return "FASTER", f"the subject takes {1 - 1 / ratio.estimate:.2%} less time: {spread}"
    if ratio.high < 1 and ratio.estimate < 1 / (1 + MARGIN):
        return "SLOWER", f"the subject takes {1 / ratio.estimate - 1:.2%} more time: {spread}"
    seen = "equality" if ratio.low <= 1 <= ratio.high else "a difference that does not matter"
    return "AMBIGUOUS", (
        f"{spread} allows both {seen} and a difference beyond {MARGIN:.2%}: "
        f"about {_budget_factor(ratio):.0f} times the budget, or a quieter machine, would settle it"
    )


def _budget_factor(ratio: Interval) -> float:
    half_width = math.log(ratio.high / ratio.low) / 2
    return max(2.0, (2 * half_width / math.log1p(MARGIN)) ** 2)  # width falls with the square root of time
