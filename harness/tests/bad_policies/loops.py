"""Never ends."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Never ends."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        while True:
            layer.get("hidden_size")


class Case(TinyLlama):
    """The case beside the policy."""
