"""A case that takes milliseconds, for policies whose badness shows at once, and the good policy that they spoil."""

from __future__ import annotations

from typing import Any

from harness.case import Axis, Example
from harness.hf.case import TransformersCase
from harness.hf.inputs import POSITIONS, VOCABULARY
from policies.llama import LlamaLayerPolicy as Good

__all__ = ["Good", "TinyLlama"]


class TinyLlama(TransformersCase):
    """A Llama of one layer."""

    name = "tiny"
    title = "Tiny Llama"
    configuration = "transformers:LlamaConfig"
    model = "transformers:LlamaModel"
    layer = "transformers.models.llama.modeling_llama:LlamaDecoderLayer"
    axes = (
        Axis("attention", ("sdpa", "eager")),
        Axis("heads", (2, 3)),
        Axis("layers", (1,)),
        Axis("batch", (1, 2)),
        Axis("tokens", (3, 5)),
        Axis("padding", ("none",)),
        Axis("mask", ("none",)),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {
            "hidden_size": example["heads"] * 4,
            "num_attention_heads": example["heads"],
            "num_key_value_heads": example["heads"],
            "intermediate_size": 9,
            "num_hidden_layers": example["layers"],
            "vocab_size": VOCABULARY,
            "max_position_embeddings": POSITIONS,
            "bos_token_id": None,
            "eos_token_id": None,
        }
