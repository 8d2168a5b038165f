"""Refuses every layer there is."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Refuses every layer there is."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        raise layer.refuse("nothing is good enough")


class Case(TinyLlama):
    """The case beside the policy."""
