"""Examples that meet every pair of axis values, first.

Drawn at random, the last pair of values is met only after some thousand examples: n pairs of probability 1/184 each
take 184 (ln n + 0.58) draws (the coupon collector's problem). A covering array of strength two needs about as many rows
as its two largest axes have combinations, and most faults that need two values at once need no third (Kuhn, Wallace and
Gallo, Software fault interactions, IEEE TSE 30(6), 2004). So a search begins with one and goes on at random.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from .case import Axis, Example

T = TypeVar("T")
SEEDS = 65_520
"""Planned examples have seeds below this multiple of 2 to 10, 12, 13, 14, 15 and 16."""
_STEP = 40_493
"""Near the golden section of ``SEEDS``, without a common factor."""
_BLOCK = 16


@cache
def covering_array(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Rows of value indices, one an axis of that many values, in which every pair of two axes' values occurs."""
    from allpairspy import AllPairs

    if len(sizes) < 2:
        return tuple((index,) for size in sizes for index in range(size))
    # The algorithm gets by with the fewest rows when the largest axes come first.
    order = sorted(range(len(sizes)), key=lambda axis: -sizes[axis])
    place = [order.index(axis) for axis in range(len(sizes))]
    return tuple(tuple(row[at] for at in place) for row in AllPairs([range(sizes[axis]) for axis in order]))


def covering_examples(axes: tuple[Axis, ...], seed: int, most: int) -> list[Example]:
    """The first ``most`` examples of a covering array over the claimed ``axes``; the others are drawn.

    ``seed`` decides which value stands for which index, so that every seed meets the pairs in other company.
    """
    generator = random.Random(seed)
    claimed = [axis for axis in axes if axis.claimed]
    named = {axis.name: generator.sample(axis.values, len(axis.values)) for axis in claimed}
    rows = covering_array(tuple(len(axis.values) for axis in claimed))[:most]
    examples = []
    for row, own in zip(rows, _spread(len(rows), generator), strict=True):
        chosen = {axis.name: named[axis.name][index] for axis, index in zip(claimed, row, strict=True)}
        values = {axis.name: chosen.get(axis.name, generator.choice(axis.values)) for axis in axes}
        examples.append(Example(values, own))
    return examples


def chosen_by(seed: int, every: Sequence[T]) -> T:
    """One of ``every``, by an example's seed alone: the same while the example is made simple, and each as often as another over
    planned examples."""
    return every[seed % SEEDS * len(every) // SEEDS]


def _spread(count: int, generator: random.Random) -> list[int]:
    """Seeds, by which properties choose among ways to ask: any ``_BLOCK`` of them in a row from the front meet every remainder of
    a number as small, and every part of ``SEEDS`` (a Weyl sequence). In no order within a block, so that no way goes with
    one value of an axis; a block at a time, so that whoever asks only the first of many examples meets all ways too."""
    start = generator.randrange(SEEDS)
    seeds: list[int] = []
    while len(seeds) < count:
        block = [(start + _STEP * place) % SEEDS for place in range(len(seeds), min(len(seeds) + _BLOCK, count))]
        seeds += generator.sample(block, len(block))
    return seeds
