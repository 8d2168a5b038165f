"""The case on which a row is judged."""

from __future__ import annotations

from dataclasses import replace

from ..case import Case
from ..registry import CaseEntry
from ..validation.derive import derive
from ..validation.derived import DerivedCase
from .rows import Row


def subject(row: Row, entries: tuple[CaseEntry, ...]) -> Case:
    """The row's case, kept to the values that the row allows."""
    if ":" in row.case:
        return DerivedCase(derive(row.case))
    case = next(entry for entry in entries if entry.name == row.case).load()
    return case.changed(axes=tuple(replace(axis, values=row.only.get(axis.name, axis.values)) for axis in case.axes))
