"""GPT-J blocks: one norm for attention and MLP in parallel, every-two rotary positions.

Until transformers 5.24 each layer holds a table of positions and computes attention itself; since then the model hands
positions down, and attention is eager or sdpa.
"""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, Causality, LayerAnatomy, NormPosition, Rotary, RotaryStyle, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention, Returns, RotarySource
from .releases import at_least

_MODELING = "transformers.models.gptj.modeling_gptj"
_HANDED_DOWN = at_least("transformers", "5.24")


class HFGPTJLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:GPTJBlock",)
    call = CallConvention(
        returns=Returns.TENSOR if _HANDED_DOWN else Returns.TENSOR_AND_WEIGHTS,
        rotary=RotarySource.HALVES if _HANDED_DOWN else RotarySource.TABLE,
        ignored=HF_IGNORED,
        configured=False,
    )

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
    check = layer.transformers_attention if _HANDED_DOWN else layer.module
    own = check("attn", f"{_MODELING}:GPTJAttention")
    return Attention(
        qkv=SplitQKV(query=layer.linear("attn.q_proj"), key=layer.linear("attn.k_proj"), value=layer.linear("attn.v_proj")),
        out=layer.linear("attn.out_proj"),
        heads=own.num_attention_heads,
        kv_heads=own.num_attention_heads,
        head_size=own.head_dim,
        scale=own.scaling if _HANDED_DOWN else 1.0 / own.scale_attn,
        causality=layer.causality(own) if _HANDED_DOWN else Causality.NEVER,
        module=own,
        scores_in_float32=True,
        cache_index=own.layer_idx,
        rotary=Rotary(style=RotaryStyle.EVERY_TWO, size=_rotary_size(layer, own)),
    )


def _rotary_size(layer: Any, own: Any) -> int:
    """Without ``rotary_dim`` positions are as wide as the hidden size, which fits one head only."""
    size: int = own.rotary_dim or own.embed_dim
    if size > own.head_dim:
        raise layer.refuse(f"rotary positions of width {size} for heads of size {own.head_dim}")
    return size
