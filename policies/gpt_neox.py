"""GPT-NeoX layers: QKV interleaved by head, partial half rotary positions, parallel or sequential residual."""

from __future__ import annotations

from typing import Any

from .anatomy import (
    MLP,
    Attention,
    FusedQKV,
    LayerAnatomy,
    NormPosition,
    QKVLayout,
    Rotary,
    RotaryStyle,
)
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention, RotarySource

_MODELING = "transformers.models.gpt_neox.modeling_gpt_neox"


class GPTNEOXLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:GPTNeoXLayer",)
    call = CallConvention(rotary=RotarySource.EMBEDDINGS, ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        layer.module("mlp", f"{_MODELING}:GPTNeoXMLP")
        attention = _attention(layer)
        return LayerAnatomy(
            attention=attention,
            mlp=MLP(
                up=layer.linear("mlp.dense_h_to_4h"),
                down=layer.linear("mlp.dense_4h_to_h"),
                activation=layer.activation("mlp.act"),
            ),
            attention_norm=layer.norm("input_layernorm"),
            mlp_norm=layer.norm("post_attention_layernorm"),
            norm_position=NormPosition.PRE,
            parallel=layer.get("use_parallel_residual"),
            hidden_size=attention.out.weight.shape[0],
        )


def _attention(layer: Any) -> Attention:
    own = layer.transformers_attention("attention", f"{_MODELING}:GPTNeoXAttention")
    linear = layer.linear("attention.query_key_value")
    heads = linear.weight.shape[0] // (3 * own.head_size)
    return Attention(
        qkv=FusedQKV(linear=linear, layout=QKVLayout.INTERLEAVED),
        out=layer.linear("attention.dense"),
        heads=heads,
        kv_heads=heads,
        head_size=own.head_size,
        scale=own.scaling,
        causality=layer.causality(own),
        module=own,
        cache_index=own.layer_idx,
        rotary=Rotary(style=RotaryStyle.HALF, size=own.rotary_ndims),
    )
