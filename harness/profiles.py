"""How deep a check goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """``examples`` of a property whose share is 1, on a cheap case (a transformer layer); a case says what its own
    examples cost by its ``effort``."""

    name: str
    examples: int

    def examples_of(self, share: float, effort: float, least: int) -> int:
        """Examples, ``least`` or more, for a property of this share on a case whose examples cost ``effort`` times as much."""
        return max(least, round(self.examples * share / effort))


PROFILES = {
    "quick": Profile("quick", 40),
    "regression": Profile("regression", 120),
    "nightly": Profile("nightly", 4000),
}


def depth(name: str, examples: int | None = None) -> Profile:
    """The profile of this name, with another number of examples where one is given."""
    profile = PROFILES[name]
    return profile if examples is None else Profile(name, examples)
