"""What a megatron-core configuration may switch on in a layer that is replaced.

A layer of megatron-core reads its configuration at every call, and the configuration has more than two hundred fields.
So the rule is turned round: a field may differ from its default only if it is listed here, because the page reads what
it does from the modules, or because it has no part in a layer's forward. Any other field that is set, among them those
of later releases, refuses the layer by its name.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

_READ_FROM_THE_LAYER = frozenset(
    {
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "ffn_hidden_size",
        "softmax_scale",
        "apply_query_key_layer_scaling",
        "attention_softmax_in_fp32",
        "masked_softmax_fusion",
        "window_size",
        "window_attn_skip_freq",
        "normalization",
        "layernorm_epsilon",
        "qk_layernorm",
        "qk_l2_norm",
        "add_bias_linear",
        "add_qkv_bias",
        "gated_linear_unit",
        "activation_func",
        "bias_activation_fusion",
        "rotary_interleaved",
        "no_rope_freq",
        "num_moe_experts",
        "linear_attention_freq",
    }
)
"""Said by the layer's modules, or read by the page. Experts and linear attention are modules of another class."""

_NOT_IN_THE_FORWARD = frozenset(
    {
        "hidden_dropout",
        "attention_dropout",
        "bias_dropout_fusion",
        "apply_rope_fusion",
        "persist_layer_norm",
        "memory_efficient_layer_norm",
        "params_dtype",
        "fp16",
        "bf16",
        "perform_initialization",
        "use_cpu_initialization",
        "init_method",
        "output_layer_init_method",
        "init_method_std",
        "embedding_init_method",
        "embedding_init_method_std",
        "init_model_with_meta_device",
        "is_hybrid_model",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
        "distribute_saved_activations",
        "activation_func_fp8_input_store",
        "gradient_accumulation_fusion",
        "async_tensor_model_parallel_allreduce",
        "calculate_per_token_loss",
        "qk_clip",
        "qk_clip_alpha",
        "qk_clip_threshold",
        "cross_entropy_loss_fusion",
        "cross_entropy_fusion_impl",
        "deterministic_mode",
        "timers",
        "finalize_model_grads_func",
        "grad_scale_func",
        "no_sync_func",
        "grad_sync_func",
        "param_sync_func",
        "enable_autocast",
        "autocast_dtype",
        "barrier_with_L1_time",
        "config_logger_dir",
        "clone_scatter_output_in_embedding",
        "use_te_rng_tracker",
        "inference_rng_tracker",
        "inference_sampling_seed",
        "flash_decode",
        "mlp_chunks_for_prefill",
        "disable_bf16_reduced_precision_matmul",
        "transformer_impl",
        "attention_backend",
        "mrope_section",
        "heterogeneous_block_specs",
        "hetereogenous_dist_checkpoint",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "pipeline_model_parallel_size",
        "pipeline_model_parallel_comm_backend",
        "pipeline_model_parallel_layout",
        "pipeline_dtype",
        "virtual_pipeline_model_parallel_size",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
        "microbatch_group_size_per_vp_stage",
        "num_microbatches_with_partial_activation_checkpoints",
        "variable_seq_lengths",
        "overlap_p2p_comm",
        "batch_p2p_comm",
        "batch_p2p_sync",
        "use_ring_exchange_p2p",
        "deallocate_pipeline_outputs",
        "overlap_p2p_comm_warmup_flush",
        "cuda_graph_scope",
        "cuda_graph_use_single_mempool",
        "cuda_graph_retain_backward_graph",
        "cuda_graph_warmup_steps",
    }
)
"""Initialisation, training, schedules between layers, dropout (which evaluation leaves out), and kernels that compute
the same function. What only an inference context reads is here too: such a call goes to the original."""

_OF_OTHER_MODULES = ("moe_", "mtp_", "mamba_", "dsa_", "linear_", "fp8_", "fp4_", "tp_comm_", "embedding_")
"""Beginnings of fields that detail a feature of other modules, or one whose own switch is looked at (``fp8``)."""


def unknown_feature(config: Any) -> str | None:
    """The first field of ``config`` that is set and that a replacement would not honour, as text; None if none is."""
    config_class: Any = type(config)
    for name, default in _looked_at(config_class):
        value = getattr(config, name, default)
        if value is not default and value != default:
            return f"config.{name}={value!r}"
    if getattr(config, "yarn_rotary_scaling_factor", None) is not None:
        return "config.yarn_rotary_scaling_factor: YaRN's factor on rotary positions"
    return None


@functools.cache
def _looked_at(config_class: type) -> tuple[tuple[str, Any], ...]:
    """Name and default of each field to look at. Fields that a project adds in a subclass of its own describe its
    model; megatron-core's layers do not know them."""
    own = [cls for cls in config_class.__mro__ if cls.__module__.startswith("megatron.core")]
    fields = {field.name: field for cls in own if dataclasses.is_dataclass(cls) for field in dataclasses.fields(cls)}
    known = _READ_FROM_THE_LAYER | _NOT_IN_THE_FORWARD
    return tuple(
        (name, _default(field)) for name, field in fields.items() if name not in known and not name.startswith(_OF_OTHER_MODULES)
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
