"""Gives six values where attention() has seven."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Gives six values where attention() has seven."""

    def attention(self) -> Any:
        return super().attention()[:-1]


class Case(TinyLlama):
    """The case beside the policy."""
