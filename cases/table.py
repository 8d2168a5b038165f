"""Cases by the properties that apply to them: parameters of tests that judge each pair."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness.properties import PROPERTIES
from harness.registry import CaseEntry


def table(entries: Iterable[CaseEntry], *, without: tuple[str, ...] = ()) -> list[object]:
    """``pytest.param(entry, prop)`` of every pair that can be judged here, but for properties named in ``without``."""
    return [
        pytest.param(entry, prop, id=f"{entry.name}-{prop.name.replace(' ', '-')}")
        for entry in entries
        if entry.unavailable is None
        for prop in PROPERTIES
        if prop.applies(entry.load()) and prop.name not in without
    ]
