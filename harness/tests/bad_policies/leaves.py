"""Leaves by the front door."""

from __future__ import annotations

import sys
from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Leaves by the front door."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        sys.exit(0)


class Case(TinyLlama):
    """The case beside the policy."""
