"""Replaces a layer that the model does not have."""

from __future__ import annotations

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Replaces a layer that the model does not have."""

    layer_classes = ("transformers.models.llama.modeling_llama:LlamaEncoderLayer",)


class Case(TinyLlama):
    """The case beside the policy."""
