"""Names a parameter that the layer does not have."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Names a parameter that the layer does not have."""

    def get_param_names(self) -> Any:
        names = super().get_param_names()
        return type(names)(("attention.dense.weight", *names[1:]))


class Case(TinyLlama):
    """The case beside the policy."""
