"""From an observed tail to a level that one honest example in ten thousand reaches.

Ratios beyond a high threshold follow a generalised Pareto distribution (Balkema and de Haan, 1974; Pickands, 1975). The
level that an example exceeds with probability p is threshold + scale / shape * ((p / share)^-shape - 1), where share is
the share of examples beyond the threshold (Coles, An Introduction to Statistical Modeling of Extreme Values, 2001,
section 4.3). Two choices are conservative: the shape is never taken below zero (no tail ends), and the level is the upper
end of a bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BEYOND = 0.02
"""Share of examples that count as the tail."""
EXCEEDED = 1e-4
"""Probability that one honest example exceeds the level. It is asked again then, so that alarms are rarer still."""
CONFIDENCE = 0.95
RESAMPLES = 200
LEAST = 100
"""Examples in the tail below which nothing is extrapolated."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Parameters of the fit, and the level that follows."""

    threshold: float
    shape: float
    scale: float
    level: float


def extrapolate(ratios: Sequence[float], seed: int) -> Tail:
    """Fit the tail of ``ratios``. Raises ``ValueError`` where it holds fewer than ``LEAST`` examples."""
    import numpy as np

    values = np.sort(np.asarray(ratios, dtype=float))
    beyond = int(len(values) * BEYOND)
    if beyond < LEAST:
        needed = math.ceil(LEAST / BEYOND)
        raise ValueError(f"a tail is fitted to {needed} ratios or more, got {len(values)}: measure more examples")
    threshold, excess = float(values[-beyond - 1]), values[-beyond:] - values[-beyond - 1]
    shape, scale = _fit(excess)
    generator = np.random.default_rng(seed)
    levels = [_level(threshold, *_fit(generator.choice(excess, size=beyond, replace=True))) for _ in range(RESAMPLES)]
    return Tail(threshold=threshold, shape=shape, scale=scale, level=float(np.quantile(levels, CONFIDENCE)))


def _fit(excess: object) -> tuple[float, float]:
    """Shape, at least 0, and scale of a generalised Pareto distribution: by probability-weighted moments, which are
    stable where maximum likelihood is not (Hosking and Wallis, 1987)."""
    import numpy as np

    values = np.sort(np.asarray(excess, dtype=float))
    ranks = (np.arange(len(values)) + 0.65) / len(values)
    mean, weighted = float(values.mean()), float((values * (1.0 - ranks)).mean())
    shape = 2.0 - mean / (mean - 2.0 * weighted)
    if shape <= 0.0:
        return 0.0, mean
    return shape, 2.0 * mean * weighted / (mean - 2.0 * weighted)


def _level(threshold: float, shape: float, scale: float) -> float:
    rarity = BEYOND / EXCEEDED
    growth = math.log(rarity) if shape == 0.0 else (rarity**shape - 1.0) / shape
    return threshold + scale * growth
