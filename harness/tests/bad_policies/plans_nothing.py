"""A policy whose plan is none."""

from __future__ import annotations

from typing import Any

from torch import nn

from policies.base import DSPolicy


class PlansNothing(DSPolicy):
    layer_classes = ("transformers.models.llama.modeling_llama:LlamaDecoderLayer",)

    @classmethod
    def plan(cls, module: nn.Module, **options: Any) -> Any:
        """Nobody says how it is swapped."""
