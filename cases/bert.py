"""BERT: encoder, decoder, and decoder with cross-attention."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, ClassVar

from torch import nn

from harness.case import Axis, Example, Inputs, Workload
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase

BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}


class BertCase(TransformersCase):
    name = "bert"
    title = "BERT layer"
    configuration = "transformers:BertConfig"
    model = "transformers:BertModel"
    layer = "transformers.models.bert.modeling_bert:BertLayer"
    causal = False
    axes = (
        Axis("role", ("encoder", "decoder", "decoder with cross-attention")),
        hf.IMPLEMENTATION,
        hf.HEADS,
        hf.ODD_HEAD_SIZES,
        hf.INNER,
        hf.ACTIVATIONS,
        hf.EPS,
        *hf.COMMON,
        Axis("chunked_mlp", (0, 1)),
        hf.SOURCE_TOKENS,
    )
    workloads: ClassVar[tuple[Workload, ...]] = (
        Workload(name="bert-base", phase="encoder", batch=1, tokens=128, config=BASE, weight_bytes=28_400_000),
        Workload(name="bert-base", phase="encoder", batch=8, tokens=128, config=BASE, weight_bytes=28_400_000),
        Workload(name="bert-large", phase="encoder", batch=1, tokens=384, config=LARGE, weight_bytes=50_400_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {
            "hidden_size": example["heads"] * example["head_size"],
            "num_attention_heads": example["heads"],
            "intermediate_size": example["inner"],
            "num_hidden_layers": example["layers"],
            "hidden_act": example["activation"],
            "layer_norm_eps": example["eps"],
            "vocab_size": hf.VOCABULARY,
            "max_position_embeddings": hf.positions(example),
            "is_decoder": example["role"] != "encoder",
            "add_cross_attention": example["role"] == "decoder with cross-attention",
            "chunk_size_feed_forward": example["chunked_mlp"],
        }

    def make(self, config: Any, example: Example) -> nn.Module:
        model: nn.Module = resolve_name(self.model)(config, add_pooling_layer=False)
        return model

    @property
    def complete(self) -> Example:
        return self.simplest.with_value("role", "decoder with cross-attention")

    def is_causal(self, example: Example) -> bool:
        return bool(example["role"] != "encoder")

    def caches(self, example: Example) -> bool:
        return bool(example["role"] != "encoder")

    def inputs(self, example: Example) -> Inputs:
        inputs = super().inputs(example)
        if example["role"] != "decoder with cross-attention":
            return inputs
        extra = hf.encoder_states(example, example["heads"] * example["head_size"])
        return Inputs(kwargs={**inputs.kwargs, **extra}, valid=inputs.valid)
