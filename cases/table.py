"""Cases by the properties that apply to them: parameters of tests that judge each pair."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cases import CASES
from harness.properties import PROPERTIES
from harness.registry import CaseEntry

LAYERED = [entry for entry in CASES if entry.unavailable is None and entry.load().layered]
"""Cases of Transformer layers that can be judged here."""


def table(entries: Iterable[CaseEntry], *, without: tuple[str, ...] = ()) -> list[object]:
    """``pytest.param(entry, prop)`` of every pair that can be judged here, but for properties named in ``without``."""
    return [
        pytest.param(entry, prop, id=f"{entry.name}-{prop.name.replace(' ', '-')}")
        for entry in entries
        if entry.unavailable is None
        for prop in PROPERTIES
        if prop.applies(entry.load()) and prop.name not in without
    ]
