"""Which cases there are, by name and without importing torch: what lists, completes and suggests needs no more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from policies.catalogue import ENTRIES, Entry

from .suggest import suggestion

if TYPE_CHECKING:
    from .case import Case


class UnknownCase(ValueError):
    """A case was named that does not exist; the message suggests the nearest."""


@dataclass(frozen=True)
class CaseEntry:
    """``path`` is ``module:Class`` of the case; ``policy`` the architecture of its policy in the catalogue."""

    name: str
    path: str
    policy: str

    @property
    def policy_entry(self) -> Entry:
        return next(entry for entry in ENTRIES if entry.name == self.policy)

    @property
    def policy_class(self) -> str:
        """Name of the policy's class."""
        return self.policy_entry.policy.partition(":")[2]

    @property
    def unavailable(self) -> str | None:
        """Why this case cannot run here, or None."""
        return self.policy_entry.unavailable

    def load(self) -> Case:
        return load_case(self.path)


def load_case(path: str) -> Case:
    """The case at ``module:Class``."""
    case: Case = resolve_name(path)()
    return case


def choose(entries: tuple[CaseEntry, ...], names: Iterable[str]) -> tuple[CaseEntry, ...]:
    """The entries of these names in the order of ``entries``; all of them where no name is given.

    Raises ``UnknownCase`` with a suggestion.
    """
    wanted = list(dict.fromkeys(names))
    known = {entry.name: entry for entry in entries}
    for name in wanted:
        if name not in known:
            hint = suggestion(name, known, f"there are: {' '.join(known)}")
            raise UnknownCase(f"no case is called {name!r}; {hint}")
    return tuple(entry for entry in entries if not wanted or entry.name in wanted)
