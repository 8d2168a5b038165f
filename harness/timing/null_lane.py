"""The A/A lane: the same call on both sides, as many times as wanted, under the run's own noise.

Equal calls must not be called different. Each alarm here is a false one, and how wide the intervals are says how small a
difference this run could have seen: both are printed beside the results, because a table of "no difference" from a run that
could not have seen ten percent is worth nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from reports.record import NullLane

from .devices import Call, Device
from .paired import PairedResult, compare
from .statistics import CONFIDENCE
from .stopping import LAST_SHARE

POWER = 0.95


@dataclass(frozen=True, kw_only=True)
class NullLaneResult:
    """What the A/A comparisons of one run showed."""

    results: tuple[PairedResult, ...]
    alarms: int
    """Comparisons that called equal calls FASTER or SLOWER."""
    smallest_effect: float | None
    """Relative difference that a comparison run to its full budget finds with probability ``POWER``; None without any
    interval."""

    def record(self) -> NullLane:
        """The part that the run record holds."""
        return NullLane(comparisons=len(self.results), alarms=self.alarms, smallest_effect=self.smallest_effect)


def null_lane(
    calls: Sequence[Call],
    *,
    device: Device,
    comparisons: int,
    budget_seconds: float,
    seed: int,
) -> NullLaneResult:
    """Compare each of ``calls`` in turn with itself, ``comparisons`` times in all, ``budget_seconds`` at most for each.

    Raises ``ValueError`` without any call.
    """
    if not calls:
        raise ValueError("the A/A lane needs at least one call to compare with itself, got none")
    results = [
        compare(
            calls[number % len(calls)],
            calls[number % len(calls)],
            device=device,
            budget_seconds=budget_seconds,
            seed=seed + number,
        )
        for number in range(comparisons)
    ]
    return NullLaneResult(
        results=tuple(results),
        alarms=count_alarms(results),
        smallest_effect=smallest_effect(results),
    )


def count_alarms(results: Iterable[PairedResult]) -> int:
    """Comparisons that claim a difference."""
    return sum(result.verdict in ("FASTER", "SLOWER") for result in results)


def smallest_effect(results: Iterable[PairedResult]) -> float | None:
    """Relative difference found with probability ``POWER`` when a comparison goes on to its planned end.

    Median over ``results``. The standard error at the end is that at the stop, times the square root of pairs measured over
    pairs planned; the difference must exceed it by the normal quantiles of the last look and of the power (the usual
    sample-size formula).
    """
    quantiles = float(stats.norm.isf((1 - CONFIDENCE) * LAST_SHARE / 2) + stats.norm.ppf(POWER))
    effects = [
        math.expm1(quantiles * result.standard_error * math.sqrt(result.pairs / result.planned_pairs))
        for result in results
        if result.standard_error is not None
    ]
    return statistics.median(effects) if effects else None
