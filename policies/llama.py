"""Llama decoder layers: RMS norm, gated MLP, grouped queries, half rotary positions handed in by the model."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, LayerAnatomy, NormPosition, Rotary, RotaryStyle, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention, RotarySource

_MODELING = "transformers.models.llama.modeling_llama"


class LlamaLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:LlamaDecoderLayer",)
    call = CallConvention(rotary=RotarySource.EMBEDDINGS, ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        layer.module("mlp", f"{_MODELING}:LlamaMLP")
        return LayerAnatomy(
            attention=_attention(layer),
            mlp=MLP(
                gate=layer.linear("mlp.gate_proj"),
                up=layer.linear("mlp.up_proj"),
                down=layer.linear("mlp.down_proj"),
                activation=layer.activation("mlp.act_fn"),
            ),
            attention_norm=layer.norm("input_layernorm"),
            mlp_norm=layer.norm("post_attention_layernorm"),
            norm_position=NormPosition.PRE,
            hidden_size=layer.get("hidden_size"),
        )


def _attention(layer: Any) -> Attention:
    own = layer.transformers_attention("self_attn", f"{_MODELING}:LlamaAttention")
    key = layer.linear("self_attn.k_proj")
    kv_heads = key.weight.shape[0] // own.head_dim
    return Attention(
        qkv=SplitQKV(query=layer.linear("self_attn.q_proj"), key=key, value=layer.linear("self_attn.v_proj")),
        out=layer.linear("self_attn.o_proj"),
        heads=kv_heads * own.num_key_value_groups,
        kv_heads=kv_heads,
        head_size=own.head_dim,
        scale=own.scaling,
        causality=layer.causality(own),
        module=own,
        cache_index=own.layer_idx,
        rotary=Rotary(style=RotaryStyle.HALF, size=own.head_dim),
    )
