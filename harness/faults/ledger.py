"""Pairs of fault and case in which the mistake cannot be seen, each with the reason.

An entry is a claim like any other: it fails when its fault is noticed after all, and when the fault no longer applies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """``fault`` on ``case`` makes no difference, because of ``why``."""

    fault: str
    case: str
    why: str


_TRIES_ITSELF = "the policy tries each reading on the layer before it believes it, and refuses where {}"
_BLINDED = ("in place", "itself", "any error", "loose", "not a number", "last only", "born so", "simplest")

LEDGER: tuple[Entry, ...] = (
    Entry("F25 unread", "megatron_older", _TRIES_ITSELF.format("a part that nobody read matters")),
    Entry("F25 unread module", "megatron_older", _TRIES_ITSELF.format("a module that nobody read matters")),
    Entry(
        "M19 part",
        "megatron_older",
        "forks have parts of their own classes; " + _TRIES_ITSELF.format("one does something else"),
    ),
    *(
        Entry(f"M25 {name}", "megatron_older", _TRIES_ITSELF.format("a canary is at work: no comparison is needed to notice it"))
        for name in _BLINDED
    ),
)


def excuse(fault: str, case: str) -> str | None:
    """Why ``fault`` makes no difference on ``case``, or None where it has to be noticed."""
    return next((one.why for one in LEDGER if (one.fault, one.case) == (fault, case)), None)
