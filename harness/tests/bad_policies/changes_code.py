"""Puts another forward on the class of the layer that it reads."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Puts another forward on the class of the layer that it reads."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        original = type(layer.layer)
        original.forward = lambda self, hidden_states, *args, **kwargs: hidden_states
        return super().read(layer)


class Case(TinyLlama):
    """The case beside the policy."""
