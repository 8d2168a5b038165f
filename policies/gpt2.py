"""GPT-2 blocks: pre-norm, Conv1D weights stored (in, out), one blocked QKV projection, optional cross-attention."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, Causality, FusedQKV, LayerAnatomy, NormPosition, QKVLayout, SplitCrossQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention

_MODELING = "transformers.models.gpt2.modeling_gpt2"


class HFGPT2LayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:GPT2Block",)
    call = CallConvention(ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        crossing = layer.has("crossattention")
        layer.module("mlp", f"{_MODELING}:GPT2MLP")
        return LayerAnatomy(
            attention=_attention(layer, "attn", FusedQKV(linear=layer.linear("attn.c_attn"), layout=QKVLayout.BLOCKED)),
            cross_attention=_cross_attention(layer) if crossing else None,
            mlp=MLP(up=layer.linear("mlp.c_fc"), down=layer.linear("mlp.c_proj"), activation=layer.activation("mlp.act")),
            attention_norm=layer.norm("ln_1"),
            cross_norm=layer.norm("ln_cross_attn") if crossing else None,
            mlp_norm=layer.norm("ln_2"),
            norm_position=NormPosition.PRE,
            hidden_size=layer.get("attn.embed_dim"),
        )


def _cross_attention(layer: Any) -> Attention:
    qkv = SplitCrossQKV(query=layer.linear("crossattention.q_attn"), key_value=layer.linear("crossattention.c_attn"))
    return _attention(layer, "crossattention", qkv)


def _attention(layer: Any, path: str, qkv: FusedQKV | SplitCrossQKV) -> Attention:
    own = layer.transformers_attention(path, f"{_MODELING}:GPT2Attention")
    layer.constant(f"{path}.is_cross_attention", isinstance(qkv, SplitCrossQKV))
    return Attention(
        qkv=qkv,
        out=layer.linear(f"{path}.c_proj"),
        heads=own.num_heads,
        kv_heads=own.num_heads,
        head_size=own.head_dim,
        scale=_scale(own),
        causality=_causality(layer, own),
        module=own,
        cache_index=own.layer_idx,
        scores_in_float32=own.reorder_and_upcast_attn and own.config._attn_implementation == "eager",
    )


def _scale(own: Any) -> float:
    """transformers 5.0 keeps no ``scaling``: its eager attention goes by the flags, and its sdpa passes over them."""
    if hasattr(own, "scaling"):
        return own.scaling
    scale = own.head_dim**-0.5
    if own.config._attn_implementation == "sdpa":
        return scale
    return (scale if own.scale_attn_weights else 1.0) / (own.layer_idx + 1 if own.scale_attn_by_inverse_layer_idx else 1)


def _causality(layer: Any, own: Any) -> Causality:
    """Eager attention of transformers 5.0 has a causal buffer of its own, and passes over the flag."""
    if hasattr(own, "bias") and own.config._attn_implementation != "sdpa":
        return Causality.NEVER if own.is_cross_attention else Causality.ALWAYS
    return layer.causality(own)
