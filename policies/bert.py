"""BERT and RoBERTa layers: post-norm, split QKV, exact parts of any activation; as decoder causal with cross-attention.

transformers keeps RoBERTa as a copy of BERT, part by part, so one page reads both.
"""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, LayerAnatomy, NormPosition, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention

_FAMILIES = ("bert.modeling_bert:Bert", "roberta.modeling_roberta:Roberta")


def _classes(part: str) -> tuple[str, ...]:
    return tuple(f"transformers.models.{family}{part}" for family in _FAMILIES)


class HFBertLayerPolicy(AnatomyPolicy):
    layer_classes = _classes("Layer")
    call = CallConvention(ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        crossing = layer.has("crossattention")
        if crossing and not layer.get("is_decoder"):
            raise layer.refuse("cross-attention in a layer that is no decoder, which leaves it out")
        layer.module("intermediate", *_classes("Intermediate"))
        layer.module("output", *_classes("Output"))
        return LayerAnatomy(
            attention=_attention(layer, "attention", "SelfAttention"),
            cross_attention=_attention(layer, "crossattention", "CrossAttention") if crossing else None,
            mlp=MLP(
                up=layer.linear("intermediate.dense"),
                down=layer.linear("output.dense"),
                activation=layer.activation("intermediate.intermediate_act_fn"),
            ),
            attention_norm=layer.norm("attention.output.LayerNorm"),
            cross_norm=layer.norm("crossattention.output.LayerNorm") if crossing else None,
            mlp_norm=layer.norm("output.LayerNorm"),
            norm_position=NormPosition.POST,
            hidden_size=layer.get("output.dense.weight").shape[0],
        )


def _attention(layer: Any, path: str, kind: str) -> Attention:
    layer.module(path, *_classes("Attention"))
    layer.constant(f"{path}.is_cross_attention", kind == "CrossAttention")
    own = layer.transformers_attention(f"{path}.self", *_classes(kind))
    layer.module(f"{path}.output", *_classes("SelfOutput"))
    return Attention(
        qkv=SplitQKV(
            query=layer.linear(f"{path}.self.query"),
            key=layer.linear(f"{path}.self.key"),
            value=layer.linear(f"{path}.self.value"),
        ),
        out=layer.linear(f"{path}.output.dense"),
        heads=own.num_attention_heads,
        kv_heads=own.num_attention_heads,
        head_size=own.attention_head_size,
        scale=own.scaling,
        causality=layer.causality(own),
        module=own,
        cache_index=own.layer_idx,
    )
