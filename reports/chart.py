"""Where things stand in a drawing: scales, ticks and lines, as numbers for the SVG in the templates.

Requirements this file must meet:

* Ratios and errors are drawn on log axes: twice as fast and twice as slow are equally far from 1.
* A mark beyond the axis is drawn at its edge and known to be clipped, so that one wild row cannot flatten all others.
* Only numbers leave this file; the page's look stays in the templates.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reports.record import Interval

WIDEST_RATIO = 8.0
"""A ratio axis ends at 1/8 and 8 at the widest."""
RATIO_TICKS = (0.125, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
NARROWEST_GAP = 34
"""Pixels between two tick labels, at least."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled place on an axis; ``x`` in pixels from the left."""

    x: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A log axis from ``low`` to ``high`` over ``width`` pixels."""

    low: float
    high: float
    width: int
    ticks: tuple[Tick, ...] = ()

    def x(self, value: float) -> float:
        """Pixels from the left; values beyond an end are put at that end."""
        value = min(max(value, self.low), self.high)
        return round(self.width * math.log(value / self.low) / math.log(self.high / self.low), 1)

    def clips(self, value: float) -> bool:
        """Whether ``value`` lies beyond the axis."""
        return not self.low <= value <= self.high


def ratio_axis(intervals: Iterable[Interval], width: int) -> Axis:
    """An axis around 1 that holds all the intervals, or as much of them as ``WIDEST_RATIO`` allows."""
    ends = [end for interval in intervals for end in (interval.low, interval.high)]
    low = max(min([0.85, *(end / 1.04 for end in ends)]), 1 / WIDEST_RATIO)
    high = min(max([1.18, *(end * 1.04 for end in ends)]), WIDEST_RATIO)
    axis = Axis(low=low, high=high, width=width)
    return Axis(low=low, high=high, width=width, ticks=_spaced(axis))


def _spaced(axis: Axis) -> tuple[Tick, ...]:
    # 1 comes first, because it is the line that everything is read against.
    chosen: list[float] = []
    for value in sorted(RATIO_TICKS, key=lambda v: abs(math.log(v))):
        if not axis.clips(value) and all(abs(axis.x(value) - axis.x(other)) >= NARROWEST_GAP for other in chosen):
            chosen.append(value)
    return tuple(Tick(x=axis.x(value), label=f"{value:g}×") for value in sorted(chosen))


def error_axis(width: int) -> Axis:
    """The axis on which errors and tolerances are drawn: 1e-17 to 1."""
    axis = Axis(low=1e-17, high=1.0, width=width)
    ticks = tuple(Tick(x=axis.x(10.0**power), label=f"1e{power}") for power in (-16, -12, -8, -4, 0))
    return Axis(low=axis.low, high=axis.high, width=width, ticks=ticks)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Places ``first`` to ``after`` - 1 of a series, over which it kept the level ``value``."""

    first: int
    after: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Sparkline:
    """A series over its runs, and the levels it kept, as SVG point lists."""

    width: int
    height: int
    points: str
    levels: tuple[str, ...]


def sparkline(
    values: Sequence[float], levels: Sequence[Level], *, width: int = 240, height: int = 36, most: int = 160
) -> Sparkline:
    """Draw a non-empty series of positive values on a log scale.

    A series longer than ``most`` is drawn as that many medians of neighbouring runs: more would not be seen, and would weigh
    the page down.
    """
    step = max(1, math.ceil(len(values) / most))
    binned = [
        (i + (min(step, len(values) - i) - 1) / 2, statistics.median(values[i : i + step])) for i in range(0, len(values), step)
    ]
    logs = [math.log(v) for _, v in binned] + [math.log(level.value) for level in levels]
    # Half a span of 10 % at least, or the noise of a steady series would fill the drawing.
    middle, half = (max(logs) + min(logs)) / 2, max((max(logs) - min(logs)) / 2, 0.05)

    def place(index: float, value: float) -> str:
        x = 2 + (width - 4) * index / max(len(values) - 1, 1)
        y = height / 2 - (height / 2 - 3) * (math.log(value) - middle) / half
        return f"{x:.1f},{y:.1f}"

    return Sparkline(
        width=width,
        height=height,
        points=" ".join(place(i, v) for i, v in binned),
        levels=tuple(f"{place(level.first, level.value)} {place(level.after - 1, level.value)}" for level in levels),
    )
