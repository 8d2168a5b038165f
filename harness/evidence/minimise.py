"""Making a failing example as simple as it can be, axis by axis, and finding the nearest one that passes.

Axes are independent and listed simplest first, so greedy descent is enough: put all axes back to their simplest values,
or halves of them, or quarters (delta debugging: Zeller and Hildebrandt, IEEE TSE 28(2), 2002), then give each the
simplest value at which the example still fails, until nothing changes. The result is minimal in the sense that no
single axis can be made simpler. The seed stays: by it a property chooses what it asks, and another question is another failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, zip_longest
from typing import Any

from ..case import Axis, Example

BUDGET = 150
"""Examples tried at most to make one simple, a few seconds of a transformer case."""
NEIGHBOURS = 40
"""Examples tried at most to find one that passes; a fault that every configuration shows has none."""
SECONDS = 20.0
"""Time that either may take: examples of a diffusion model in half precision take a second each, and who validates a policy
gives a check one minute."""
Fails = Callable[[Example], bool | None]
"""Whether an example fails; None where it shows nothing either way."""


@dataclass
class Probe:
    """Asks whether an example fails, each example once and at most ``budget`` of them, and for ``seconds``; beyond that it says
    None."""

    fails: Fails
    budget: int
    seconds: float = SECONDS
    began: float = field(default_factory=lambda: time.monotonic())
    known: dict[tuple[object, ...], bool | None] = field(default_factory=dict)

    def __call__(self, example: Example) -> bool | None:
        key = (*example.values.items(), example.seed)
        if key not in self.known:
            if len(self.known) >= self.budget or time.monotonic() - self.began > self.seconds:
                return None
            self.known[key] = self.fails(example)
        return self.known[key]


def minimise(example: Example, axes: tuple[Axis, ...], fails: Fails, *, budget: int = BUDGET) -> Example:
    """The simplest failing example found from ``example``, which fails."""
    probe = Probe(fails, budget)
    example = _put_back_together(example, axes, probe)
    before = None
    while example != before:
        before = example
        for axis in axes:
            example = _simplest_value(example, axis, probe)
    return example


def _put_back_together(example: Example, axes: tuple[Axis, ...], probe: Probe) -> Example:
    """``example`` with as many axes as possible at their simplest values, tried in ever smaller groups."""
    size = len(axes)
    while size > 1:
        off = [axis for axis in axes if example[axis.name] != axis.simplest]
        size = min(size, len(off))
        for group in (off[start : start + size] for start in range(0, len(off), max(size, 1))):
            simpler = Example({**example.values, **{axis.name: axis.simplest for axis in group}}, example.seed)
            if probe(simpler):
                example = simpler
        size //= 2
    return example


def _simplest_value(example: Example, axis: Axis, probe: Probe) -> Example:
    """``example`` with the first value of ``axis`` at which it fails."""
    for value in axis.values[: axis.values.index(example[axis.name])]:
        simpler = example.with_value(axis.name, value)
        if probe(simpler):
            return simpler
    return example


def nearest_passing(example: Example, axes: tuple[Axis, ...], fails: Fails, *, budget: int = NEIGHBOURS) -> Example | None:
    """The nearest example that passes: fewest axes changed, and back to their simplest values where that is enough.

    None where none was found within ``budget``.
    """
    probe = Probe(fails, budget)
    return next((one for one in _neighbours(example, axes) if probe(one) is False), None)


def _neighbours(example: Example, axes: tuple[Axis, ...]) -> Iterator[Example]:
    """One axis back to its simplest value; two of them; then one axis to each other value, all axes in turn."""
    off = [axis for axis in axes if example[axis.name] != axis.simplest]
    for axis in off:
        yield example.with_value(axis.name, axis.simplest)
    for one, other in combinations(off, 2):
        yield example.with_value(one.name, one.simplest).with_value(other.name, other.simplest)
    others = [[value for value in axis.values if value != example[axis.name]] for axis in axes]
    for turn in zip_longest(*others, fillvalue=_NONE_LEFT):
        for axis, value in zip(axes, turn, strict=True):
            if value is not _NONE_LEFT:
                yield example.with_value(axis.name, value)


_NONE_LEFT: Any = object()
