"""OPT decoder layers: pre- or post-norm, any activation, biases and norm gains that may be absent."""

from __future__ import annotations

from typing import Any

from .anatomy import MLP, Attention, LayerAnatomy, NormPosition, SplitQKV
from .base import AnatomyPolicy
from .calls import HF_IGNORED, CallConvention

_MODELING = "transformers.models.opt.modeling_opt"


class HFOPTLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:OPTDecoderLayer",)
    call = CallConvention(ignored=HF_IGNORED, configured=False)
    load_prefix = True

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        before = layer.get("do_layer_norm_before")
        return LayerAnatomy(
            attention=_attention(layer),
            mlp=MLP(up=layer.linear("fc1"), down=layer.linear("fc2"), activation=layer.activation("activation_fn")),
            attention_norm=layer.norm("self_attn_layer_norm"),
            mlp_norm=layer.norm("final_layer_norm"),
            norm_position=NormPosition.PRE if before else NormPosition.POST,
            hidden_size=layer.get("embed_dim"),
        )


def _attention(layer: Any) -> Attention:
    own = layer.transformers_attention("self_attn", f"{_MODELING}:OPTAttention")
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
        scale=own.scaling,
        causality=layer.causality(own),
        module=own,
        cache_index=own.layer_idx,
    )
