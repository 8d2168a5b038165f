"""Cases by the properties that apply to them: parameters of tests that judge each pair."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cases import CASES
from harness.properties import PROPERTIES
from harness.registry import CaseEntry

LAYERED = [entry for entry in CASES if entry.unavailable is None and entry.load().layered]
"""Cases of Transformer layers that can be judged here."""


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
