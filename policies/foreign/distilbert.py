"""DistilBERT layers, for comparison: DeepSpeed has a policy for them, this project's catalogue has none."""

from __future__ import annotations

from typing import Any

from ..anatomy import MLP, Attention, Causality, LayerAnatomy, NormPosition, SplitQKV
from ..base import AnatomyPolicy
from ..calls import HF_IGNORED, CallConvention

_MODELING = "transformers.models.distilbert.modeling_distilbert"


class DistilBertLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:TransformerBlock",)
    call = CallConvention(ignored=HF_IGNORED)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        own = layer.transformers_attention("attention", f"{_MODELING}:DistilBertSelfAttention")
        layer.module("ffn", f"{_MODELING}:FFN")
        return LayerAnatomy(
            attention=Attention(
                qkv=SplitQKV(
                    query=layer.linear("attention.q_lin"),
                    key=layer.linear("attention.k_lin"),
                    value=layer.linear("attention.v_lin"),
                ),
                out=layer.linear("attention.out_lin"),
                heads=own.n_heads,
                kv_heads=own.n_heads,
                head_size=own.attention_head_size,
                scale=own.scaling,
                causality=Causality.NEVER,
                module=own,
            ),
            mlp=MLP(up=layer.linear("ffn.lin1"), down=layer.linear("ffn.lin2"), activation=layer.activation("ffn.activation")),
            attention_norm=layer.norm("sa_layer_norm"),
            mlp_norm=layer.norm("output_layer_norm"),
            norm_position=NormPosition.POST,
            hidden_size=layer.get("ffn.lin2.weight").shape[0],
        )
