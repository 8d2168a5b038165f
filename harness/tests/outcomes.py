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
SOME = Profile("some", 20)


def outcomes(names: Iterable[str], case: Case, replacer: Replacer, *, beside: Iterable[str] = ()) -> dict[str, str]:
    """The outcome of each of the properties of these names, on many examples; what fails is not made simple. Those ``beside``
    them are asked on some only: their examples never come to what is wrong, whichever they are."""
    found = {name: _verdict(name, case, replacer, MANY).outcome for name in names}
    return found | {name: _verdict(name, case, replacer, SOME).outcome for name in beside}


def failure(name: str, case: Case, replacer: Replacer) -> str:
    """What the property of this name says of the first of many examples that fails; nothing where none does."""
    found = _verdict(name, case, replacer, MANY).failure
    return found.message if found else ""


def _verdict(name: str, case: Case, replacer: Replacer, profile: Profile) -> Verdict:
    with mock.patch.object(search, "_simplify"):
        return check_property(BY_NAME[name], case, profile=profile, seed=1, policy="", replacer=replacer, explain=False).verdict
