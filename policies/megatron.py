"""Megatron's layers: megatron-core's ``TransformerLayer`` of the local spec, and its ancestor.

One QKV projection, interleaved by query group; gated or plain MLP; biases that travel beside the output they belong to;
hidden states with the sequence first. What a layer computes is read from its modules; what it would read from its
configuration at every call is looked at in ``megatron_config``. The ancestor, ``ParallelTransformerLayer``, is read in
``megatron_older``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .anatomy import (
    MLP,
    Activation,
    ActivationKind,
    Attention,
    Causality,
    FusedQKV,
    LayerAnatomy,
    Linear,
    Norm,
    NormKind,
    NormPosition,
    QKVLayout,
    Rotary,
    RotaryStyle,
)
from .base import AnatomyPolicy
from .calls import CallConvention, Returns, RotarySource
from .megatron_config import unknown_feature
from .megatron_older import OlderMegatronLayerPolicy
from .megatron_parts import activation, no_kernel_without_mask, parallel_linear
from .swap import Swap, qualified_name

if TYPE_CHECKING:
    from torch import nn

_TRANSFORMER = "megatron.core.transformer"
_LINEAR = "megatron.core.tensor_parallel.layers"
_CONFIGURED = ("config", "self_attention.config", "self_attention.core_attention.config", "mlp.config")


class MegatronLayerPolicy(AnatomyPolicy):
    layer_classes = (f"{_TRANSFORMER}.transformer_layer:TransformerLayer", "*:ParallelTransformerLayer")
    call = CallConvention(
        returns=Returns.TENSOR_AND_CONTEXT,
        rotary=RotarySource.ANGLES,
        sequence_first=True,
        true_means_masked=True,
        ignored=frozenset({"context_mask", "padding_mask", "dynamic_inference_decode_only"}),
        signature="_forward_attention",
        autocast=False,  # its residual stream takes the dtype of what is added to it
    )

    @classmethod
    def plan(cls, module: nn.Module) -> Swap:
        return OlderMegatronLayerPolicy.plan(module) if _is_older(module) else super().plan(module)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        if _is_older(layer.layer):
            return OlderMegatronLayerPolicy.read(layer)
        for config in {id(one): one for one in map(layer.get, _CONFIGURED)}.values():
            unknown = unknown_feature(config)
            if unknown is not None:
                raise layer.refuse(unknown)
        _plain_wiring(layer)
        return LayerAnatomy(
            attention=_attention(layer),
            mlp=_mlp(layer),
            attention_norm=layer.norm("input_layernorm"),
            mlp_norm=layer.norm("pre_mlp_layernorm"),
            norm_position=NormPosition.PRE,
            hidden_size=layer.get("self_attention.linear_proj.output_size"),
        )


def _is_older(module: nn.Module) -> bool:
    return hasattr(getattr(module, "mlp", None), "dense_h_to_4h")


def _plain_wiring(layer: Any) -> None:
    """The layer is attention and MLP, each added to its residual, and nothing between them."""
    for path in ("cross_attention", "pre_cross_attn_layernorm"):
        layer.module(path, f"{_TRANSFORMER}.identity_op:IdentityOp")
    layer.module("cross_attn_bda", f"{_TRANSFORMER}.identity_op:IdentityFuncOp")
    for path in ("self_attn_bda", "mlp_bda"):
        if _function_name(layer.get(path)) != "megatron.core.fusions.fused_bias_dropout:get_bias_dropout_add":
            raise layer.refuse(f"{path} is not Megatron's bias, dropout and addition")


def _attention(layer: Any) -> Attention:
    own = layer.module("self_attention", f"{_TRANSFORMER}.attention:SelfAttention")
    core = layer.module("self_attention.core_attention", f"{_TRANSFORMER}.dot_product_attention:DotProductAttention")
    path = "self_attention.core_attention.scale_mask_softmax"
    softmax = layer.module(path, "megatron.core.fusions.fused_softmax:FusedScaleMaskSoftmax")
    if _function_name(softmax.mask_func) != f"{_TRANSFORMER}.utils:attention_mask_func":
        raise layer.refuse(f"{path} has a mask_func of its own")
    no_kernel_without_mask(layer, softmax)
    if core.softmax_offset is not None:
        raise layer.refuse("softmax_offset: an extra term in the sum of attention's softmax")
    window = _window(layer, softmax)
    causal = softmax.attn_mask_type.name == "causal"
    query_norm, key_norm = (_head_norm(layer, f"self_attention.{one}_layernorm") for one in "qk")
    if (query_norm is None) != (key_norm is None):
        raise layer.refuse("a norm of queries or keys without its counterpart")
    return Attention(
        qkv=FusedQKV(
            linear=parallel_linear(layer, "self_attention.linear_qkv", f"{_LINEAR}:ColumnParallelLinear", adds=True),
            layout=QKVLayout.INTERLEAVED,
        ),
        out=parallel_linear(layer, "self_attention.linear_proj", f"{_LINEAR}:RowParallelLinear"),
        heads=own.num_attention_heads_per_partition,
        kv_heads=own.num_query_groups_per_partition,
        head_size=own.hidden_size_per_attention_head,
        scale=core.softmax_scale * (1.0 if softmax.scale is None else softmax.scale),
        causality=Causality.ONLY if window else Causality.IF_NO_MASK if causal else Causality.NEVER,
        module=own,
        window=window,
        rotary=_rotary(own),
        even_if_blind=True,
        query_norm=query_norm,
        key_norm=key_norm,
    )


def _window(layer: Any, softmax: Any) -> int | None:
    """How many keys a query sees, itself among them. ``window_size`` counts those before it and those after it."""
    if softmax.window_size is None:
        return None
    before, after = softmax.window_size
    if after != 0 or before < 0:
        raise layer.refuse(f"window_size={softmax.window_size!r}: a window that is not causal and bounded")
    return int(before) + 1


def _rotary(own: Any) -> Rotary | None:
    """Positions come with the call, as angles for as many elements as the model chose; some layers leave them out."""
    skipped = own.config.no_rope_freq
    if skipped and skipped[own.layer_number - 1]:
        return None
    style = RotaryStyle.EVERY_TWO if own.config.rotary_interleaved else RotaryStyle.HALF
    return Rotary(style=style, size=None)


def _head_norm(layer: Any, path: str) -> Norm | None:
    found = layer.get(path)
    kind = None if found is None else qualified_name(type(found))
    if kind in (None, f"{_TRANSFORMER}.identity_op:IdentityOp"):
        return None
    if kind == f"{_TRANSFORMER}.torch_norm:L2Norm":
        return Norm(name=path, kind=NormKind.RMS, weight=None, bias=None, eps=found.eps)
    norm: Norm = layer.norm(path)
    return norm


def _mlp(layer: Any) -> MLP:
    own = layer.module("mlp", f"{_TRANSFORMER}.mlp:MLP")
    gated = own.config.gated_linear_unit
    first = parallel_linear(layer, "mlp.linear_fc1", f"{_LINEAR}:ColumnParallelLinear")
    return MLP(
        up=None if gated else first,
        gate_up=first if gated else None,
        down=parallel_linear(layer, "mlp.linear_fc2", f"{_LINEAR}:RowParallelLinear"),
        activation=_activation(layer, own, first),
    )


def _activation(layer: Any, own: Any, first: Linear) -> Activation:
    from torch.nn import functional as F  # noqa: N812

    from .fused.activations import gelu_tanh_short

    config, function = own.config, own.activation_func
    if config.activation_func is not function:
        raise layer.refuse("mlp.activation_func is not the configuration's")
    if not config.bias_activation_fusion:
        return activation(layer, "mlp.activation_func")
    if function is F.gelu and (config.gated_linear_unit or first.bias is not None):
        return Activation(kind=ActivationKind.GELU_TANH_SHORT, function=gelu_tanh_short)
    if function is F.silu and config.gated_linear_unit:
        return Activation(kind=ActivationKind.SILU, function=function)
    raise layer.refuse("bias_activation_fusion with an activation for which Megatron has no fused kernel")


def _function_name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
