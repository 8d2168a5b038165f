"""GPT-J blocks: one norm for attention and MLP in parallel, every-two rotary positions from the layer's own table."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, Causality, LayerAnatomy, NormPosition, Rotary, RotaryStyle, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention, Returns, RotarySource

_MODELING = "transformers.models.gptj.modeling_gptj"


class HFGPTJLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:GPTJBlock",)
    call = CallConvention(returns=Returns.TENSOR_AND_WEIGHTS, cache="layer_past", rotary=RotarySource.TABLE, ignored=HF_IGNORED)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        layer.module("mlp", f"{_MODELING}:GPTJMLP")
        return LayerAnatomy(
            attention=_attention(layer),
            mlp=MLP(up=layer.linear("mlp.fc_in"), down=layer.linear("mlp.fc_out"), activation=layer.activation("mlp.act")),
            attention_norm=layer.norm("ln_1"),
            mlp_norm=None,
            norm_position=NormPosition.PRE,
            parallel=True,
            hidden_size=layer.get("attn.embed_dim"),
        )


def _attention(layer: Any) -> Attention:
    own = layer.module("attn", f"{_MODELING}:GPTJAttention")
    return Attention(
        qkv=SplitQKV(query=layer.linear("attn.q_proj"), key=layer.linear("attn.k_proj"), value=layer.linear("attn.v_proj")),
        out=layer.linear("attn.out_proj"),
        heads=own.num_attention_heads,
        kv_heads=own.num_attention_heads,
        head_size=own.head_dim,
        scale=1.0 / own.scale_attn,
        causality=Causality.NEVER,
        module=own,
        cache_index=own.layer_idx,
        rotary=Rotary(style=RotaryStyle.EVERY_TWO, size=_rotary_size(layer, own)),
    )


def _rotary_size(layer: Any, own: Any) -> int:
    """The table's width. Without ``rotary_dim`` it is as wide as the hidden size, which fits one head only."""
    size: int = own.embed_positions.shape[-1]
    if size > own.head_dim:
        raise layer.refuse(f"a rotary table of width {size} for heads of size {own.head_dim}")
    return size
