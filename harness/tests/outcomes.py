"""What properties say of a replacer."""

from __future__ import annotations

from collections.abc import Iterable
from unittest import mock

from harness import search
from harness.case import Case
from harness.check import check_property
from harness.profiles import Profile
from harness.properties import BY_NAME
from harness.trial import Replacer

MANY = Profile("many", 120)


def outcomes(names: Iterable[str], case: Case, replacer: Replacer) -> dict[str, str]:
    """The outcome of each of the properties of these names, on many examples; what fails is not made simple."""
    found = {}
    for name in names:
        with mock.patch.object(search, "_simplify"):
            checked = check_property(BY_NAME[name], case, profile=MANY, seed=1, policy="", replacer=replacer, explain=False)
        found[name] = checked.verdict.outcome
    return found
