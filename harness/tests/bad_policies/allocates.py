"""Takes memory until there is none."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Takes memory until there is none."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        kept = []
        while True:
            kept.append(bytearray(2**26))


class Case(TinyLlama):
    """The case beside the policy."""
