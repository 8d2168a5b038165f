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
from reports.record import Verdict

MANY = Profile("many", 120)


def outcomes(names: Iterable[str], case: Case, replacer: Replacer) -> dict[str, str]:
    """The outcome of each of the properties of these names, on many examples; what fails is not made simple."""
    return {name: _verdict(name, case, replacer).outcome for name in names}


def failure(name: str, case: Case, replacer: Replacer) -> str:
    """What the property of this name says of the first of many examples that fails; nothing where none does."""
    found = _verdict(name, case, replacer).failure
    return found.message if found else ""


def _verdict(name: str, case: Case, replacer: Replacer) -> Verdict:
    with mock.patch.object(search, "_simplify"):
        return check_property(BY_NAME[name], case, profile=MANY, seed=1, policy="", replacer=replacer, explain=False).verdict
