"""BLOOM blocks: QKV interleaved by head, ALiBi handed in by the model, residual before or after the norm."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, Causality, FusedQKV, LayerAnatomy, NormPosition, QKVLayout
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention, Returns

_MODELING = "transformers.models.bloom.modeling_bloom"


class BLOOMLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:BloomBlock",)
    call = CallConvention(returns=Returns.TENSOR_AND_WEIGHTS, ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        own = layer.module("self_attention", f"{_MODELING}:BloomAttention")
        for part in (own, layer.module("mlp", f"{_MODELING}:BloomMLP")):
            if part.slow_but_exact and part.pretraining_tp > 1:
                # In this mode the original leaves out a bias that its usual mode adds.
                raise layer.refuse(f"slow_but_exact with pretraining_tp={part.pretraining_tp}")
        return LayerAnatomy(
            attention=_attention(layer, own),
            mlp=MLP(
                up=layer.linear("mlp.dense_h_to_4h"),
                down=layer.linear("mlp.dense_4h_to_h"),
                activation=layer.activation("mlp.gelu_impl"),
            ),
            attention_norm=layer.norm("input_layernorm"),
            mlp_norm=layer.norm("post_attention_layernorm"),
            norm_position=NormPosition.PRE,
            residual_from_norm=layer.get("apply_residual_connection_post_layernorm"),
            hidden_size=own.hidden_size,
        )


def _attention(layer: Any, own: Any) -> Attention:
    if own.beta != 1.0:
        raise layer.refuse(f"ALiBi weighted by beta={own.beta}")
    return Attention(
        qkv=FusedQKV(linear=layer.linear("self_attention.query_key_value"), layout=QKVLayout.INTERLEAVED),
        out=layer.linear("self_attention.dense"),
        heads=own.num_heads,
        kv_heads=own.num_heads,
        head_size=own.head_dim,
        scale=own.inv_norm_factor,
        causality=Causality.NEVER,
        module=own,
        cache_index=own.layer_idx,
        alibi=True,
    )
