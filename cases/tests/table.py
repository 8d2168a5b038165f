"""Cases by the properties that apply to them: parameters of tests that judge each pair."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cases import CASES
from harness.properties import PROPERTIES
from harness.registry import CaseEntry
from reports.record import Verdict

UNABLE = {("megatron", "pickle")}
"""What is asked of no example, because no original can do it."""
LAYERED = [entry for entry in CASES if entry.unavailable is None and entry.load().layered]
"""Cases of Transformer layers that can be judged here."""


def see_held(verdict: Verdict) -> None:
    """Raises with the evidence where ``verdict`` is not that something held."""
    expected = "unavailable" if (verdict.case, verdict.property) in UNABLE else "held"
    assert verdict.outcome == expected, f"{verdict.reason}\n{verdict.failure}\nseed {verdict.seed}"
    assert verdict.outcome == "unavailable" or verdict.examples > 0


def table(entries: Iterable[CaseEntry], *, without: tuple[str, ...] = (), one_in: int = 1) -> list[object]:
    """``pytest.param(entry, prop)`` of every pair that can be judged here, but for properties named in ``without``.

    ``one_in`` deals properties out to cases: each case is asked that part of them, and each property of that part of the cases.
    """
    return [
        pytest.param(entry, prop, id=f"{entry.name}-{prop.name.replace(' ', '-')}")
        for row, entry in enumerate(entry for entry in entries if entry.unavailable is None)
        for column, prop in enumerate(PROPERTIES)
        if prop.applies(entry.load()) and prop.name not in without and (row + column) % one_in == 0
    ]
