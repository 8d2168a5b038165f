"""Gives the output projection of the attention transposed and cut."""

from __future__ import annotations

from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Gives the output projection of the attention transposed and cut."""

    def attention(self) -> Any:
        said = super().attention()
        return said._replace(qkv_bias=said.qkv_weight.new_zeros(3))


class Case(TinyLlama):
    """The case beside the policy."""
