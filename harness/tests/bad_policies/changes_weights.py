"""Changes a weight while reading."""

from __future__ import annotations

from typing import Any

import torch

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Changes a weight while reading."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        with torch.no_grad():
            layer.get("self_attn.q_proj.weight").add_(1.0)
        return super().read(layer)


class Case(TinyLlama):
    """The case beside the policy."""
