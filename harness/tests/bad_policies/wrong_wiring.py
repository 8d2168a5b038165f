"""Takes the gate for the other projection."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Takes the gate for the other projection."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        found = super().read(layer)
        mlp = dataclasses.replace(found.mlp, gate=found.mlp.up, up=found.mlp.gate)
        return dataclasses.replace(found, mlp=mlp)


class Case(TinyLlama):
    """The case beside the policy."""
