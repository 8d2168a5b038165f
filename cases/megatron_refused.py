"""megatron-core layers with a feature that no replacement expresses, each to be refused by its name.

Where megatron-core itself cannot build a feature on a CPU, the layer is built without it and its configuration or
module is changed afterwards, as a checkpoint's configuration or a project's own code would have it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from harness.case import Case, Refusal
from harness.hf.tampered import AdaptedLinear, count_heads_otherwise, drop_otherwise, extra_parameter, subclass
from harness.randomise import randomise

from .megatron_cpu import core, megatron_alone, process_groups, quietly

_BUILT_WITH: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("an output gate", "attention_output_gate", {"attention_output_gate": True}),
    ("off-by-one softmax", "softmax_type", {"softmax_type": "off-by-one"}),
    ("learnable softmax offset", "softmax_type", {"softmax_type": "learnable"}),
    ("a linear offset in the gate", "glu_linear_offset", {"gated_linear_unit": True, "glu_linear_offset": 1.0}),
    ("a clamped activation", "activation_func_clamp_value", {"activation_func_clamp_value": 1.0}),
    ("an unbounded window", "window_size", {"window_size": (-1, 0)}),
    ("a window into the future", "window_size", {"window_size": (2, 1)}),
    ("residual after the norm", "apply_residual_connection_post_layernorm", {
        "apply_residual_connection_post_layernorm": True}),
    ("a float32 residual", "fp32_residual_connection", {"fp32_residual_connection": True}),
    ("consistency checks", "test_mode", {"test_mode": True}),
    ("a fused softmax that drops masks", "masked_softmax_fusion", {"masked_softmax_fusion": True, "bf16": True}),
)  # fmt: skip
_CONFIGURED_LATER: tuple[tuple[str, str, Any], ...] = (
    ("tensor parallelism", "tensor_model_parallel_size", 2),
    ("sequence parallelism", "sequence_parallel", True),
    ("context parallelism", "context_parallel_size", 2),
    ("gains about zero", "layernorm_zero_centered_gamma", True),
    ("fp8", "fp8", "e4m3"),
    ("fp4", "fp4", "e2m1"),
    ("captured graphs", "cuda_graph_impl", "local"),
    ("batch invariance", "batch_invariant_mode", True),
    ("offloading", "cpu_offloading", True),
    ("multi-latent rotary positions", "multi_latent_attention", True),
    ("YaRN's factor", "yarn_rotary_scaling_factor", 4.0),
)


def refusals(case: Case) -> tuple[Refusal, ...]:
    """Every refusal; ``case`` builds the models that carry them."""
    built = tuple(Refusal(name=n, feature=f, build=_with(case, given)) for n, f, given in _BUILT_WITH)
    later = tuple(Refusal(name=n, feature=f, build=_later(case, f, value)) for n, f, value in _CONFIGURED_LATER)
    changed = tuple(Refusal(name=n, feature=f, build=_changed(case, change)) for n, f, change in _CHANGES)
    other = tuple(Refusal(name=n, feature=f, build=build) for n, f, build in _OTHER_MODULES)
    return (*built, *later, *changed, *other)


def _with(case: Case, given: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: case.build(case.simplest, **given)


def _later(case: Case, field: str, value: Any) -> Callable[[], nn.Module]:
    def configure(layer: Any) -> None:
        setattr(layer.config, field, value)

    return _changed(case, configure)


def _changed(case: Case, change: Callable[[Any], None]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = case.build(case.simplest)
        for layer in [one for one in model.modules() if type(one).__name__ == "TransformerLayer"]:
            change(layer)
        return model

    return build


def _adapt(layer: Any) -> None:
    own = layer.mlp.linear_fc2
    layer.mlp.linear_fc2 = AdaptedLinear(own.input_size, own.output_size)


def _shard(layer: Any) -> None:
    layer.self_attention.linear_proj.input_size *= 2


def _drop_bias(layer: Any) -> None:
    layer.self_attention.linear_qkv.skip_bias_add = True


def _norm_queries_only(layer: Any) -> None:
    layer.self_attention.q_layernorm = nn.LayerNorm(layer.self_attention.hidden_size_per_attention_head)


def _leave_residual_out(layer: Any) -> None:
    layer.mlp_bda = core("transformer.identity_op").IdentityFuncOp()


def _latent_attention(layer: Any) -> None:
    # Its constructor hands the local core attention arguments that this does not take (0.16.1).
    layer.self_attention.__class__ = core("transformer.multi_latent_attention").MLASelfAttention


def _configure_apart(path: str) -> Callable[[Any], None]:
    """A part with a configuration of its own, which switches on what the layer's does not."""

    def configure(layer: Any) -> None:
        part = layer.get_submodule(path)
        part.config = copy.copy(part.config)
        part.config.batch_invariant_mode = True

    return configure


def _exchange_activation(layer: Any) -> None:
    layer.mlp.activation_func = torch.tanh


_CHANGES: tuple[tuple[str, str, Callable[[Any], None]], ...] = (
    ("an adapted linear", "AdaptedLinear", _adapt),
    ("another dropout", "ScaledDropout", drop_otherwise),
    ("a share of a linear", "tensor parallelism", _shard),
    ("heads that contradict the projections", "heads", count_heads_otherwise),
    ("a bias that is never added", "skip_bias_add", _drop_bias),
    ("a norm of the queries alone", "without its counterpart", _norm_queries_only),
    ("an MLP without residual", "mlp_bda", _leave_residual_out),
    ("multi-latent attention", "MLASelfAttention", _latent_attention),
    ("a parameter nobody knows", "extra_gate", extra_parameter),
    ("a subclass of the layer", "subclass", subclass),
    ("another configuration of the attention", "batch_invariant_mode", _configure_apart("self_attention")),
    ("another configuration inside the attention", "batch_invariant_mode", _configure_apart("self_attention.core_attention")),
    ("another configuration of the MLP", "batch_invariant_mode", _configure_apart("mlp")),
    ("an activation that the configuration does not have", "activation_func", _exchange_activation),
)


def _layer(spec: Any, **given: Any) -> nn.Module:
    with megatron_alone(), quietly():
        config = core("transformer.transformer_config").TransformerConfig(
            num_layers=1,
            hidden_size=8,
            num_attention_heads=2,
            use_cpu_initialization=True,
            perform_initialization=False,
            cuda_graph_scope=[],
            **given,
        )
        layer: nn.Module = core("transformer.spec_utils").build_module(
            spec, config=config, layer_number=1, pg_collection=process_groups()
        )
    return randomise(layer.eval(), 0)


def _experts() -> nn.Module:
    with quietly():
        spec = core("models.gpt.gpt_layer_specs").get_gpt_layer_local_spec(num_experts=2)
    return _layer(spec, num_moe_experts=2, moe_ffn_hidden_size=8, add_bias_linear=False)


def _cross_attention() -> nn.Module:
    return _layer(core("models.T5.t5_spec").decoder_model_with_local_spec())


_OTHER_MODULES: tuple[tuple[str, str, Callable[[], nn.Module]], ...] = (
    ("experts", "MoELayer", _experts),
    ("cross-attention", "CrossAttention", _cross_attention),
)
