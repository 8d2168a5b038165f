"""The regression run: every property on every case, to the depth of the profile named by ``--profile``."""

from __future__ import annotations

import pytest

from cases import CASES
from harness.check import check_property
from harness.profiles import PROFILES
from harness.properties import Property
from harness.registry import CaseEntry

from .table import see_held, table

SEED = 0


@pytest.mark.parametrize(("entry", "prop"), table(CASES))
def test_replacement_holds(entry: CaseEntry, prop: Property, request: pytest.FixtureRequest) -> None:
    """Each property holds of each policy on random tiny models, and the pass is not vacuous."""
    profile = PROFILES[request.config.getoption("--profile")]
    checked = check_property(prop, entry.load(), profile=profile, seed=SEED, policy=entry.policy_class)
    verdict = checked.verdict
    see_held(verdict)
    assert prop.once or verdict.layers_replaced == verdict.layers_expected > 0


def test_every_seed_policy_has_an_available_case() -> None:
    """No case of the regression environment is passed over for want of a package."""
    missing = {entry.name: entry.unavailable for entry in CASES if entry.unavailable}
    assert not missing
