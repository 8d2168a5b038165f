"""Warnings about samples that are unsteady, each with what to do about it.

Pairing and robust statistics keep the verdict valid under all of these; the warnings say why an interval is wide, or why
the absolute seconds of two runs will not agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from .statistics import PAIRS_IN_BLOCK, block_log_ratios, group_log_ratios, hodges_lehmann

_FEWEST_PAIRS = 16
_DRIFT = 0.05
_DRIFT_CORRELATION = 0.6
_MODES_APART = 0.05
_MODES_EXPLAIN = 0.85
"""Share of the variance between two groups: 0.64 for a normal distribution, 0.75 for a uniform one, 1 for two spikes."""
_SMALLEST_MODE = 0.15
_WIDE = 0.25
_SHAPES_APART = 0.02
_SHAPE_ALPHA = 0.001


def instabilities(baseline_seconds: Sequence[float], subject_seconds: Sequence[float]) -> tuple[str, ...]:
    """Warnings about drift, several clock levels and wide spread, from seconds a call in the order measured."""
    if len(baseline_seconds) < _FEWEST_PAIRS:
        return ()
    baseline, subject = np.log(baseline_seconds), np.log(subject_seconds)
    found = [_drift((baseline + subject) / 2), _shape(baseline_seconds, subject_seconds)]
    for side, logs in (("baseline", baseline), ("subject", subject)):
        found.append(_two_levels(side, logs) or _spread(side, logs))
    return tuple(warning for warning in found if warning)


def _drift(levels: np.ndarray) -> str | None:
    blocks = levels[: len(levels) // PAIRS_IN_BLOCK * PAIRS_IN_BLOCK].reshape(-1, PAIRS_IN_BLOCK).mean(axis=1)
    thinned = blocks[:: max(1, len(blocks) // 256)]  # Theil-Sen is quadratic in the number of points
    place = np.arange(len(thinned))
    change = float(np.expm1(stats.theilslopes(thinned, place).slope * len(thinned)))
    if abs(change) < _DRIFT or abs(stats.spearmanr(place, thinned).statistic) < _DRIFT_CORRELATION:
        return None
    return (
        f"drift: both sides became {abs(change):.0%} {'slower' if change > 0 else 'faster'} while being timed; "
        "warm up longer, fix the clock frequency, or wait until the machine is at its working temperature"
    )


def _shape(baseline_seconds: Sequence[float], subject_seconds: Sequence[float]) -> str | None:
    """The verdict compares calls that were left alone; say so where one side is slowed down more often than the other."""
    undisturbed = float(np.median(group_log_ratios(baseline_seconds, subject_seconds)))
    bounds = hodges_lehmann(block_log_ratios(baseline_seconds, subject_seconds), _SHAPE_ALPHA)
    if bounds is None or bounds[1] - _SHAPES_APART <= undisturbed <= bounds[2] + _SHAPES_APART:
        return None
    slowed = "subject" if bounds[0] < undisturbed else "baseline"
    return (
        f"shape: by its fast calls the ratio is {np.exp(undisturbed):.3g}, by all calls {np.exp(bounds[0]):.3g}; "
        f"the {slowed} has slow calls of its own: look at its raw samples for a second code path or repeated allocation"
    )


def _two_levels(side: str, logs: np.ndarray) -> str | None:
    """Otsu's split of the middle 98 %: the threshold with the largest variance between the two groups.

    Source: N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).
    """
    ordered = np.sort(logs)
    cut = len(ordered) // 100
    ordered = ordered[cut : len(ordered) - cut]
    size = len(ordered)
    below = np.arange(1, size)
    sums = np.cumsum(ordered)
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / (size - below)
    between = below * (size - below) / size**2 * (upper - lower) ** 2
    best = int(np.argmax(between))
    share = below[best] / size
    apart = float(upper[best] - lower[best])
    variance = float(ordered.var())
    if (
        variance == 0
        or apart < _MODES_APART
        or min(share, 1 - share) < _SMALLEST_MODE
        or between[best] < _MODES_EXPLAIN * variance
    ):
        return None
    return (
        f"two levels: {share:.0%} of the {side}'s samples lie near {np.exp(lower[best]) * 1e3:.3g} ms and the rest "
        f"{np.expm1(apart):.0%} above; fix the clock frequency, pin the threads to cores, and stop other load"
    )


def _spread(side: str, logs: np.ndarray) -> str | None:
    quartiles = np.quantile(logs, (0.25, 0.75))
    width = float(np.expm1(quartiles[1] - quartiles[0]))
    if width < _WIDE:
        return None
    return f"spread: the {side}'s middle half of samples differs by {width:.0%}; stop other load or raise the time budget"
