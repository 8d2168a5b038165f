"""Describes a layer by a dictionary."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Describes a layer by a dictionary."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        return {"hidden_size": layer.get("hidden_size")}


class Case(TinyLlama):
    """The case beside the policy."""
