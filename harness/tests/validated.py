"""Validations of small files, for tests."""

from __future__ import annotations

from pathlib import Path

from harness.validation.isolation import Limits
from harness.validation.validate import Request, Validation, validate

BAD = Path(__file__).parent / "bad_policies"
LIMITS = Limits(seconds=8.0, memory=2**30, workers=1)


def judged(name: str, *properties: str, policy: str | None = None) -> Validation:
    """The validation of one bad policy, limited to ``properties``."""
    path = str(BAD / f"{name}.py")
    request = Request(path=path, name=policy, profile="quick", budget=0.0, limits=LIMITS, properties=properties or ("contract",))
    return validate(request)


def reason(done: Validation, prop: str) -> str:
    """Why ``prop`` does not hold; empty where it does."""
    return next(one.reason for one in done.verdicts if one.property == prop)
