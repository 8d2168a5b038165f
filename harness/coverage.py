"""Which part of a case's configuration space a run has judged, and which part it claims and has not reached.

Counted are models that were built and judged, after whatever a property changed in its example; an example that was
drawn and not judged counts for nothing, and neither do properties that compare no results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from typing import TYPE_CHECKING, Any

from reports.record import Coverage

from .case import Axis, Case, Example

if TYPE_CHECKING:
    from .check import Checked

Drawn = Counter[tuple[str, Any]]
"""Values of axes that were met."""
Pair = tuple[str, Any, str, Any]
"""Two of them met in one example, axes in alphabetical order."""


def tally(example: Example) -> tuple[list[tuple[str, Any]], list[Pair]]:
    """The values and pairs that ``example`` meets."""
    values = sorted(example.values.items())
    return values, [(a, x, b, y) for (a, x), (b, y) in combinations(values, 2)]


def coverage(case: Case, tallies: Iterable[Checked]) -> Coverage:
    """How often each axis value of ``case`` was met over all its properties, and all that it claims and was not met."""
    drawn: Drawn = Counter()
    pairs: set[Pair] = set()
    for one in tallies:
        drawn.update(one.drawn)
        pairs.update(one.pairs)
    claimed = sorted((axis for axis in case.axes if axis.claimed), key=lambda axis: axis.name)
    wanted = claimed_pairs(claimed)
    values = [f"{axis.name}={value}" for axis in claimed for value in axis.values if not drawn[(axis.name, value)]]
    met = {axis.name: (*axis.values, *_beyond(axis, drawn)) for axis in case.axes}
    return Coverage(
        case=case.name,
        axes={name: {str(value): drawn[(name, value)] for value in values} for name, values in met.items()},
        pairs_seen=sum(pair in pairs for pair in wanted),
        pairs_claimed=len(wanted),
        missed=(*values, *(f"{a}={x} with {b}={y}" for a, x, b, y in wanted if (a, x, b, y) not in pairs)),
    )


def _beyond(axis: Axis, drawn: Drawn) -> list[Any]:
    """Values of ``axis`` that a property has put in the place of what was drawn (long sequences, large layers)."""
    beyond = {value for name, value in drawn if name == axis.name and value not in axis.values}
    return sorted(beyond, key=lambda value: (len(str(value)), str(value)))


def claimed_pairs(claimed: Iterable[Axis]) -> list[Pair]:
    """Every pair of values of two of these axes."""
    return [(a.name, x, b.name, y) for a, b in combinations(claimed, 2) for x in a.values for y in b.values]


def coverage_failure(found: Coverage) -> str | None:
    """Why a nightly run fails for what it has not reached, in one sentence; None where all that is claimed was met."""
    if not found.missed:
        return None
    first = (*found.missed_values, *found.missed)[0]
    met = f"{found.pairs_seen} of {found.pairs_claimed} claimed pairs were met"
    return f"{found.case}: {len(found.missed)} claimed values and pairs were never judged, {first} among them ({met})"
