"""StableLmDecoderLayer, read into an anatomy. Written by `harness new`, which refused parallel residuals;
three lines by hand (``_PLAIN``, ``mlp_norm``, ``parallel``) express them, in the place of one that looked for them.
"""

from __future__ import annotations

from typing import Any

from policies.anatomy import MLP, Attention, LayerAnatomy, NormPosition, Rotary, RotaryStyle, SplitQKV
from policies.base import AnatomyPolicy
from policies.calls import HF_IGNORED, CallConvention, RotarySource

_MODELING = "transformers.models.stablelm.modeling_stablelm"
_PLAIN = {"qk_layernorm": False}
"""Fields that change what a layer computes, at the values described here."""


class StableLmPolicy(AnatomyPolicy):
    layer_classes = (f"{_MODELING}:StableLmDecoderLayer",)
    call = CallConvention(rotary=RotarySource.EMBEDDINGS, ignored=HF_IGNORED | {"is_causal"})

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        own = layer.transformers_attention("self_attn", f"{_MODELING}:StableLmAttention")
        layer.module("mlp", f"{_MODELING}:StableLmMLP")
        layer.constant("self_attn.qk_layernorm", False)
        for name, value in _PLAIN.items():
            if getattr(own.config, name) != value:
                raise layer.refuse(f"{name}={getattr(own.config, name)!r}")
        key = layer.linear("self_attn.k_proj")
        kv_heads = key.weight.shape[0] // own.head_dim
        return LayerAnatomy(
            attention=Attention(
                qkv=SplitQKV(query=layer.linear("self_attn.q_proj"), key=key, value=layer.linear("self_attn.v_proj")),
                out=layer.linear("self_attn.o_proj"),
                heads=own.num_heads,
                kv_heads=kv_heads,
                head_size=own.head_dim,
                scale=own.scaling,
                causality=layer.causality(own),
                module=own,
                cache_index=own.layer_idx,
                rotary=Rotary(style=RotaryStyle.HALF, size=own.rotary_ndims),
            ),
            mlp=MLP(
                gate=layer.linear("mlp.gate_proj"),
                up=layer.linear("mlp.up_proj"),
                down=layer.linear("mlp.down_proj"),
                activation=layer.activation("mlp.act_fn"),
            ),
            attention_norm=layer.norm("input_layernorm"),
            mlp_norm=None if layer.get("use_parallel_residual") else layer.norm("post_attention_layernorm"),
            parallel=layer.get("use_parallel_residual"),
            norm_position=NormPosition.PRE,
            hidden_size=layer.linear("self_attn.o_proj").weight_out_in.shape[0],
        )
