"""Pairs of fault and case in which the mistake makes no difference, each with the reason.

An entry is a claim like any other: it fails when its fault is noticed after all, and when the fault no longer applies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """``fault`` on ``case`` computes what the original computes, because of ``why``."""

    fault: str
    case: str
    why: str


LEDGER: tuple[Entry, ...] = ()


def excuse(fault: str, case: str) -> str | None:
    """Why ``fault`` makes no difference on ``case``, or None where it has to be noticed."""
    return next((one.why for one in LEDGER if (one.fault, one.case) == (fault, case)), None)
