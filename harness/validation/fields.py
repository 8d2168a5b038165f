"""Which fields of a transformers configuration mean what: by names in use, and by the type of what they hold.

A role is what a case draws (heads, eps, activation ...); the tables say by which names architectures know it. A field
of no role is drawn where its type leaves little doubt (a flag), and otherwise left at its default and reported.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

ROLES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "dim", "d_model", "n_embd"),
    "heads": ("num_attention_heads", "n_heads", "n_head", "num_heads", "attention_heads", "encoder_attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_size": ("head_dim",),
    "inner": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "hidden_dim", "encoder_ffn_dim"),
    "layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers"),
    "activation": ("hidden_act", "activation_function", "hidden_activation", "activation"),
    "eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "vocabulary": ("vocab_size",),
    "rope": ("rope_parameters",),
    "window": ("sliding_window",),
    "windowed": ("use_sliding_window",),
    "rotary_elements": ("rotary_dim",),
}
ALSO: dict[str, tuple[str, ...]] = {
    "heads": ("decoder_attention_heads",),
    "inner": ("decoder_ffn_dim",),
    "layers": ("decoder_layers",),
}
"""Second fields of encoder-decoder configurations that follow the first."""

FULL = "full_attention"
SLIDING = "sliding_attention"
"""Kinds of layers, in transformers' words, of which a window concerns the second."""

NOT_FOR_LAYERS = re.compile(
    r"dropout|drop_path|pdrop|initializer|token_id|tie_|use_cache|is_encoder_decoder|logit_scale|logits_scaling|final_logit"
    r"|summary_|classifier|problem|return_|output_(hidden|attention)|pretraining|pooler|encoder_stride|gradient|_layerdrop"
    r"|router|aux_loss|architectures|scale_embedding|layerscale_value|mask_|reshape|out_(features|indices)"
)
"""Fields that a layer in eval mode does not read, or that other axes stand for."""

DROPOUTS = re.compile(r"^(?!classifier|summary).*(dropout|pdrop)(_prob|_probability|_rate)?$")
"""Shares of values that a layer drops in training."""

FACTORS = re.compile(r"multiplier|softcap|clip_qkv|scal(e|ing|ar)\b|query_pre_attn_scalar")
"""Numbers that scale or bound something inside a layer."""

OF_EXPERTS: dict[str, tuple[int, ...]] = {
    "num_local_experts": (8, 4, 5),
    "num_experts": (8, 4, 5),
    "n_routed_experts": (8, 4, 5),
    "num_experts_per_tok": (2, 1, 3),
    "moe_intermediate_size": (8, 5, 16),
    "shared_expert_intermediate_size": (8, 5, 16),
}
"""Sizes of a mixture of experts, as small as its layers' others."""


def declared(config_class: type) -> tuple[str, ...]:
    """Names of the fields that ``config_class`` itself declares, in order; what every configuration has is left out."""
    from transformers import PreTrainedConfig

    names: dict[str, None] = {}
    for cls in reversed(config_class.__mro__):
        if issubclass(cls, PreTrainedConfig) and cls is not PreTrainedConfig:
            names.update(dict.fromkeys(vars(cls).get("__annotations__", ())))
            own_init = vars(cls).get("__init__")
            names.update(dict.fromkeys(inspect.signature(own_init).parameters if own_init is not None else ()))
    common = {"self", "kwargs", "args", *inspect.signature(PreTrainedConfig.__init__).parameters}
    common |= set(getattr(PreTrainedConfig, "__annotations__", ()))
    kept_from_base = {"is_decoder"}
    return tuple(name for name in names if name not in common - kept_from_base and not name.startswith("_"))


def role_of(name: str) -> str | None:
    """The role that a field of this name has, or None."""
    return next((role for role, known in ROLES.items() if name in known or name in ALSO.get(role, ())), None)


def fields_of_roles(config_class: type) -> dict[str, tuple[str, ...]]:
    """Role -> the fields of ``config_class`` that hold it: the first known name, and the second ones beside it."""
    names = declared(config_class)
    found: dict[str, tuple[str, ...]] = {}
    for role, known in ROLES.items():
        first = tuple(name for name in known if name in names)[:1]
        also = tuple(name for name in ALSO.get(role, ()) if name in names)
        if first or also:
            found[role] = first + also
    return found


def idle_dropouts(names: Iterable[str], default: Mapping[str, Any]) -> tuple[str, ...]:
    """Dropout fields of ``names`` that are 0 by default: a replacement that runs in training would go unnoticed."""
    return tuple(name for name in names if DROPOUTS.match(name) and default.get(name) == 0 and default[name] is not False)


def extra_values(name: str, default: Any) -> tuple[Any, ...] | None:
    """Values to draw for a field of no role, the simplest first; () where it cannot matter, None where nobody knows."""
    if NOT_FOR_LAYERS.search(name):
        return ()
    if name in OF_EXPERTS:
        return OF_EXPERTS[name]
    if isinstance(default, bool):
        return (default, not default)
    if FACTORS.search(name):
        if default is None:
            return (None, 0.7)
        if isinstance(default, int | float):
            return (default, 0.7 if default != 0.7 else 1.3)
    return None
