"""Raises where it ought to read."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Raises where it ought to read."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        return layer.layer.a_part_that_is_not_there


class Case(TinyLlama):
    """The case beside the policy."""
