"""Faults of attention's scores: their scale, the window they are left to, ALiBi.

Shapes: B batch, H heads, T tokens, S keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.anatomy import Attention, Causality
from policies.fused.attention import AttentionCall

from .edits import change, each_attention, self_attention
from .fault import Patch, Traits, miscomputing, misreading
from .understood import calling


def _scale(factor: Callable[[Attention], float]) -> Any:
    return each_attention(lambda attention: change(attention, scale=factor(attention)))


def _unscaled_to_scaled(attention: Attention) -> float:
    return float(attention.head_size**-0.5) if attention.scale == 1.0 else attention.scale


def _inverse_layer_ignored(attention: Attention) -> float:
    flagged = getattr(attention.module, "scale_attn_by_inverse_layer_idx", False)
    return attention.scale * ((attention.cache_index or 0) + 1) if flagged else attention.scale


def _inverse_layer_always(attention: Attention) -> float:
    flagged = getattr(attention.module, "scale_attn_by_inverse_layer_idx", False)
    return attention.scale if flagged else attention.scale / ((attention.cache_index or 0) + 1)


def _own_window(attention: Attention) -> bool:
    """Whether the layer makes its own causal mask, the only kind a window belongs to."""
    return attention.causality in (Causality.ALWAYS, Causality.ONLY)


def _window(edit: Callable[[int | None], int | None]) -> Any:
    def edited(attention: Attention) -> Attention:
        return change(attention, window=edit(attention.window)) if _own_window(attention) else attention

    return self_attention(edited)


def _alibi(edit: Callable[[Tensor], Tensor | None]) -> Patch:
    def edited(call: AttentionCall, attention: Attention) -> AttentionCall:
        return call if call.alibi is None else dataclasses.replace(call, alibi=edit(call.alibi))

    return calling(edited)


def _first_rank(alibi: Tensor) -> Tensor:
    """Slopes counted from the first head again on the second of two ranks."""
    heads = alibi.shape[1]
    return alibi[:, torch.arange(heads) % max(-(-heads // 2), 1)]


def _all_tokens(alibi: Tensor) -> Tensor:
    """Distances that count padding as tokens."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    batch, heads, _, keys = alibi.shape
    return build_alibi_tensor(torch.ones(batch, keys), heads, alibi.dtype).unflatten(0, (batch, heads)).to(alibi)


def _alibis(traits: Traits) -> bool:
    return traits.any_block(lambda one: one.alibi)


SCORES = (
    misreading(
        "M11 unscaled",
        "M11",
        "DeepSpeed #1112",
        "Attention scores are not scaled.",
        _scale(lambda attention: 1.0),
    ),
    misreading(
        "F42 twice",
        "F42 M11",
        "transformers #38290",
        "Attention scores are scaled twice.",
        _scale(lambda attention: attention.scale**2),
    ),
    misreading(
        "F40 scaled",
        "F40 M11",
        "DeepSpeed PR #1114",
        "Scores of a model that does not scale them are scaled.",
        _scale(_unscaled_to_scaled),
    ),
    misreading(
        "F41 inverse layer",
        "F41 M11",
        "DeepSpeed PR #2486",
        "The flag that divides scores by the layer's number is not read.",
        _scale(_inverse_layer_ignored),
    ),
    misreading(
        "M11 layer index",
        "M11",
        "DeepSpeed PR #2486",
        "Scores are divided by the layer's number in every model.",
        _scale(_inverse_layer_always),
    ),
    misreading(
        "F40 window",
        "F40 M12",
        "DeepSpeed #1112, TensorRT-Model-Connect #660",
        "Local attention reaches back without end.",
        _window(lambda window: None),
    ),
    misreading(
        "M12 all layers",
        "M12",
        "DeepSpeed PR #1114",
        "Layers without a window get one.",
        _window(lambda window: 2 if window is None else window),
    ),
    misreading(
        "M12 one more",
        "M12",
        "DeepSpeed PR #1114",
        "The window holds one key more than it should.",
        _window(lambda window: None if window is None else window + 1),
    ),
    miscomputing(
        "F43 rank",
        "F43 M13",
        "bigscience Megatron-DeepSpeed #227",
        "ALiBi slopes are counted from the first head again for the second half of the heads.",
        _alibi(_first_rank),
        applies=_alibis,
    ),
    miscomputing(
        "M13 neighbour",
        "M13",
        "flashinfer #1606",
        "Each head has its neighbour's ALiBi slope.",
        _alibi(lambda alibi: alibi.roll(1, dims=1)),
        applies=_alibis,
    ),
    miscomputing(
        "M13 none",
        "M13",
        "Pai-Megatron #29",
        "ALiBi is left out.",
        _alibi(lambda alibi: None),
        applies=_alibis,
    ),
    miscomputing(
        "M13 padding",
        "M13",
        "read in BLOOM's build_alibi_tensor",
        "ALiBi distances count padding as tokens.",
        _alibi(_all_tokens),
        applies=_alibis,
    ),
)
"""Wrong scales, windows and distances."""
