"""CohereDecoderLayer, read into an anatomy. Written by `harness new`; prove it with `harness validate`."""

from __future__ import annotations

from typing import Any

from policies.anatomy import (
    MLP,
    Attention,
    LayerAnatomy,
    Norm,
    NormKind,
    NormPosition,
    Rotary,
    RotaryStyle,
    SplitQKV,
)
from policies.base import AnatomyPolicy
from policies.calls import HF_IGNORED, CallConvention, RotarySource

_MODELING = "transformers.models.cohere.modeling_cohere"
_PLAIN = {"use_qk_norm": False}
"""Fields that change what a layer computes, at the values described here."""


class CoherePolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:CohereDecoderLayer",)
    call = CallConvention(rotary=RotarySource.EMBEDDINGS, ignored=HF_IGNORED)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        own = layer.transformers_attention("self_attn", f"{_MODELING}:CohereAttention")
        layer.module("mlp", f"{_MODELING}:CohereMLP")
        layer.constant("self_attn.use_qk_norm", False)
        for name, value in _PLAIN.items():
            if getattr(own.config, name) != value:
                raise layer.refuse(f"{name}={getattr(own.config, name)!r}")
        key = layer.linear("self_attn.k_proj")
        kv_heads = key.weight.shape[0] // own.head_dim
        return LayerAnatomy(
            attention=Attention(
                qkv=SplitQKV(query=layer.linear("self_attn.q_proj"), key=key, value=layer.linear("self_attn.v_proj")),
                out=layer.linear("self_attn.o_proj"),
                heads=kv_heads * own.num_key_value_groups,
                kv_heads=kv_heads,
                head_size=own.head_dim,
                scale=own.scaling,
                causality=layer.causality(own),
                module=own,
                cache_index=own.layer_idx,
                rotary=Rotary(style=RotaryStyle.EVERY_TWO, size=None),
            ),
            mlp=MLP(
                gate=layer.linear("mlp.gate_proj"),
                up=layer.linear("mlp.up_proj"),
                down=layer.linear("mlp.down_proj"),
                activation=layer.activation("mlp.act_fn"),
            ),
            attention_norm=_norm(layer, "input_layernorm"),
            mlp_norm=None,
            norm_position=NormPosition.PRE,
            hidden_size=layer.linear("self_attn.o_proj").weight_out_in.shape[0],
            parallel=True,
        )


def _norm(layer: Any, path: str) -> Norm:
    return layer.own_norm(path, f"{_MODELING}:CohereLayerNorm", kind=NormKind.LAYER, eps="variance_epsilon")
