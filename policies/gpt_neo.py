"""GPT-Neo blocks: unscaled attention, global or local by layer, causal by the layer's own buffer."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, Causality, LayerAnatomy, NormPosition, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention, Returns

_MODELING = "transformers.models.gpt_neo.modeling_gpt_neo"


class HFGPTNEOLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:GPTNeoBlock",)
    call = CallConvention(returns=Returns.TENSOR_AND_WEIGHTS, ignored=HF_IGNORED, configured=False)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        layer.module("mlp", f"{_MODELING}:GPTNeoMLP")
        return LayerAnatomy(
            attention=_attention(layer),
            mlp=MLP(up=layer.linear("mlp.c_fc"), down=layer.linear("mlp.c_proj"), activation=layer.activation("mlp.act")),
            attention_norm=layer.norm("ln_1"),
            mlp_norm=layer.norm("ln_2"),
            norm_position=NormPosition.PRE,
            hidden_size=layer.get("attn.attention.embed_dim"),
        )


def _attention(layer: Any) -> Attention:
    layer.module("attn", f"{_MODELING}:GPTNeoAttention")
    own = layer.module("attn.attention", f"{_MODELING}:GPTNeoSelfAttention")
    return Attention(
        qkv=SplitQKV(
            query=layer.linear("attn.attention.q_proj"),
            key=layer.linear("attn.attention.k_proj"),
            value=layer.linear("attn.attention.v_proj"),
        ),
        out=layer.linear("attn.attention.out_proj"),
        heads=own.num_heads,
        kv_heads=own.num_heads,
        head_size=own.head_dim,
        scale=1.0,
        causality=Causality.ALWAYS,
        window=_window(layer, own.bias),
        module=own,
        scores_in_float32=True,
        cache_index=own.layer_id,
    )


def _window(layer: Any, allowed: Any) -> int | None:
    """Read the window off the layer's own mask (1, 1, P, P), whose last row lets so many keys through.

    The mask is the fact and ``window_size`` only its origin; a mask of any other shape is refused.
    """
    import torch

    allowed = allowed[0, 0]
    places, window = allowed.shape[-1], int(allowed[-1].sum())
    expected = torch.ones(places, places, dtype=torch.bool, device=allowed.device).tril_().triu_(1 - window)
    if window < 1 or not torch.equal(allowed, expected):
        raise layer.refuse("attn.attention.bias is neither a causal mask nor a causal mask with a window")
    return window if window < places else None
