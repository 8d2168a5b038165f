"""What a property is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..case import Case
from ..numerics import EXACT_TOLERANCE, alive, gap
from ..trial import Disagreement, Trial, Vacuous


def everywhere(case: Case) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Property:
    """``statement`` is what it claims, for the report. ``exact``: judged in float64 under exact mode.

    ``share`` of a profile's examples are spent on it. ``once``: it does not depend on the example and runs once.
    """

    name: str
    statement: str
    check: Callable[[Trial], None]
    applies: Callable[[Case], bool] = everywhere
    exact: bool = True
    share: float = 1.0
    once: bool = False


def same_outputs(
    trial: Trial, expected: dict[str, Tensor], actual: dict[str, Tensor], valid: Tensor | None, what: str
) -> None:
    """Raise unless every output agrees to the exact tolerance at every position that counts."""
    dead = alive(expected, valid)
    if dead is not None:
        raise Vacuous(dead)
    if expected.keys() != actual.keys():
        raise Disagreement(f"{what}: expected outputs {sorted(expected)}, got {sorted(actual)}")
    for name in expected:
        difference = gap(expected[name], actual[name], valid if expected[name].dim() > 1 else None)
        if not difference.within(EXACT_TOLERANCE):
            message = difference.problem or f"relative error {difference.error:.1e} (tolerance {EXACT_TOLERANCE:.0e})"
            raise Disagreement(f"{what}: {name}: {message}", error=difference.error)
        trial.evidence.note(difference.error)
