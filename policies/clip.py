"""CLIP encoder layers of both towers: pre-norm, quick GELU as a rule, causality decided by the caller."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, LayerAnatomy, NormPosition, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention

_MODELING = "transformers.models.clip.modeling_clip"


class HFCLIPLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:CLIPEncoderLayer",)
    call = CallConvention(ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        layer.module("mlp", f"{_MODELING}:CLIPMLP")
        return LayerAnatomy(
            attention=_attention(layer),
            mlp=MLP(
                up=layer.linear("mlp.fc1"),
                down=layer.linear("mlp.fc2"),
                activation=layer.activation("mlp.activation_fn"),
            ),
            attention_norm=layer.norm("layer_norm1"),
            mlp_norm=layer.norm("layer_norm2"),
            norm_position=NormPosition.PRE,
            hidden_size=layer.get("embed_dim"),
        )


def _attention(layer: Any) -> Attention:
    own = layer.transformers_attention("self_attn", f"{_MODELING}:CLIPAttention")
    return Attention(
        qkv=SplitQKV(
            query=layer.linear("self_attn.q_proj"),
            key=layer.linear("self_attn.k_proj"),
            value=layer.linear("self_attn.v_proj"),
        ),
        out=layer.linear("self_attn.out_proj"),
        heads=own.num_heads,
        kv_heads=own.num_heads,
        head_size=own.head_dim,
        scale=own.scale,
        causality=layer.causality(own),
        module=own,
    )
