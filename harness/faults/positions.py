"""Faults of rotary positions, ALiBi, scale and locality.

Shapes: B batch, H heads, T tokens, S keys, R rotated elements of a head, E head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.anatomy import Attention, Causality, Rotary, RotaryStyle
from policies.calls import RotarySource
from policies.fused import attention as fused_attention
from policies.fused import layer as fused_layer
from policies.fused.arguments import Arguments
from policies.fused.attention import AttentionCall, FusedAttention
from policies.fused.transformer import silent

from .edits import change, each_attention, self_attention
from .fault import Patch, Traits, miscomputing, misreading


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


def _rotary(edit: Callable[[Rotary], Rotary]) -> Any:
    def edited(attention: Attention) -> Attention:
        return attention if attention.rotary is None else change(attention, rotary=edit(attention.rotary))

    return self_attention(edited)


def _other_style(rotary: Rotary) -> Rotary:
    if rotary.size is not None and rotary.size <= 2:
        return rotary
    half = rotary.style is RotaryStyle.HALF
    return change(rotary, style=RotaryStyle.EVERY_TWO if half else RotaryStyle.HALF)


def _own_window(attention: Attention) -> bool:
    """Whether the layer makes its own causal mask, the only kind a window belongs to."""
    return attention.causality in (Causality.ALWAYS, Causality.ONLY)


def _window(edit: Callable[[int | None], int | None]) -> Any:
    def edited(attention: Attention) -> Attention:
        return change(attention, window=edit(attention.window)) if _own_window(attention) else attention

    return self_attention(edited)


def calling(edit: Callable[[AttentionCall, Attention], AttentionCall]) -> Patch:
    """A patch of what the fused layer understands of each call."""

    def make(honest: Any) -> Any:
        def wrong(layer: Any, state: Any, *rest: Any) -> Arguments:
            arguments: Arguments = honest(layer, state, *rest)
            if state.refusal is not None:
                return arguments
            return dataclasses.replace(arguments, call=edit(arguments.call, state.core.anatomy.attention))

        return wrong

    return fused_layer, "read_arguments", make


def past_tokens(call: AttentionCall, attention: Attention) -> int:
    """How many tokens the call's cache holds for this layer."""
    return 0 if call.cache is None else int(call.cache.get_seq_length(attention.cache_index))


def _default_theta(call: AttentionCall, attention: Attention) -> AttentionCall:
    """Angles computed by the layer itself, with a base of 10000 and no scaling."""
    if call.cos is None or attention.rotary is None:
        return call
    tokens, size = call.cos.shape[-2:]
    positions = torch.arange(tokens, dtype=call.cos.dtype) + past_tokens(call, attention)
    angles = torch.outer(positions, 10000.0 ** -(torch.arange(0, size, 2, dtype=call.cos.dtype) / size))
    half = attention.rotary.style is RotaryStyle.HALF
    angles = torch.cat((angles, angles), dim=-1) if half else angles.repeat_interleave(2, dim=-1)
    return dataclasses.replace(call, cos=angles.cos()[None, None], sin=angles.sin()[None, None])


def _unscaled_rotary(call: AttentionCall, attention: Attention) -> AttentionCall:
    """Cosines and sines without the factor that scaled kinds put on them."""
    if call.cos is None or call.sin is None:
        return call
    length = (call.cos.square() + call.sin.square()).sqrt()
    return dataclasses.replace(call, cos=call.cos / length, sin=call.sin / length)


def _lost_offset(call: AttentionCall, attention: Attention) -> AttentionCall:
    """A single new token is always at position 0."""
    if call.cos is None or call.cos.shape[-2] != 1 or past_tokens(call, attention) == 0:
        return call
    return dataclasses.replace(call, cos=torch.ones_like(call.cos), sin=torch.zeros_like(call.cos))


def _without_rotary(call: AttentionCall, attention: Attention) -> AttentionCall:
    if call.cos is None or call.sin is None:
        return call
    return dataclasses.replace(call, cos=torch.ones_like(call.cos), sin=torch.zeros_like(call.sin))


def _wrong_divisor(honest: Any) -> Any:
    """Positions from a flat index over tokens and heads, divided by the next power of two instead of the head count."""

    def wrong(self: FusedAttention, x: Tensor, call: AttentionCall) -> Tensor:
        if call.cos is None or call.sin is None:
            return honest(self, x, call)
        rows, heads = x.flatten(1, -3), self.attention.heads
        flat = torch.arange(x.shape[-2]) * heads + torch.arange(rows.shape[1])[:, None] % heads
        index = flat // 2 ** (heads - 1).bit_length()
        wrong_call = dataclasses.replace(call, cos=call.cos[:, 0][:, index], sin=call.sin[:, 0][:, index])
        out: Tensor = honest(self, rows, wrong_call)
        return out.reshape(x.shape)

    return wrong


def _whole_head(honest: Any) -> Any:
    """Every element of a head is rotated, whatever share of it should be."""

    def wrong(rotary: Rotary, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        times = -(-x.shape[-1] // cos.shape[-1])
        width = x.shape[-1] // 2 * 2
        cos, sin = (torch.cat([one] * times, dim=-1)[..., :width] for one in (cos, sin))
        out: Tensor = honest(rotary, x, cos, sin)
        return out

    return wrong


def _keys_unrotated(honest: Any) -> Any:
    def wrong(self: FusedAttention, x: Tensor, call: AttentionCall, emit: Any) -> tuple[Tensor, Tensor, Tensor]:
        query, _, value = honest(self, x, call, silent)
        _, key, _ = honest(self, x, _without_rotary(call, self.attention), emit)
        return query, key, value

    return wrong


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


def _partial(traits: Traits) -> bool:
    """Whether a head is rotated in part: by its description, or where that leaves it to the call, by what is drawn."""
    drawn = traits.varies("rotary") or traits.varies("rotary_share")

    def in_part(one: Attention) -> bool:
        if one.rotary is None or one.rotary.size is None:
            return one.rotary is not None and drawn
        return one.rotary.size < one.head_size - 1

    return traits.any_block(in_part)


def _rotates(traits: Traits) -> bool:
    return traits.any_block(lambda one: one.rotary is not None)


def _uneven_heads(traits: Traits) -> bool:
    return traits.any_block(lambda one: one.rotary is not None and bool(one.heads & (one.heads - 1)))


def _free_theta(traits: Traits) -> bool:
    given = {RotarySource.EMBEDDINGS, RotarySource.ANGLES}
    return _rotates(traits) and any(call.rotary in given for call in traits.calls)


def _alibis(traits: Traits) -> bool:
    return traits.any_block(lambda one: one.alibi)


POSITIONS = (
    miscomputing(
        "F33 theta",
        "F33 F37 M10",
        "DeepSpeed #4442, PR #8345",
        "Rotary angles are computed with a base of 10000 whatever the model says.",
        calling(_default_theta),
        applies=_free_theta,
    ),
    miscomputing(
        "F36 unscaled",
        "F36",
        "DeepSpeed PR #8341",
        "Scaled rotary kinds lose their factor: what crashed before now runs silently unscaled.",
        calling(_unscaled_rotary),
        applies=lambda traits: traits.varies("rope"),
    ),
    miscomputing(
        "F35 index",
        "F35",
        "DeepSpeed PR #2782",
        "The rotary kernel finds a token's position with a divisor that is right for powers of two only.",
        (FusedAttention, "_rotated", _wrong_divisor),
        applies=_uneven_heads,
    ),
    misreading(
        "M10 style",
        "M10",
        "DeepSpeed PR #1683",
        "Rotary pairs are taken from halves instead of neighbours, or the reverse.",
        _rotary(_other_style),
    ),
    miscomputing(
        "M10 whole head",
        "M10",
        "DeepSpeed #3103",
        "All of each head is rotated where only a part should be.",
        (fused_attention, "rotate", _whole_head),
        applies=_partial,
    ),
    miscomputing(
        "M10 offset",
        "M10 F35",
        "DeepSpeed PR #6622",
        "A decoded token is rotated as if it were the first.",
        calling(_lost_offset),
        applies=lambda traits: traits.case.cached and _rotates(traits),
        expects=("cache",),
    ),
    miscomputing(
        "F38 no rotary",
        "F38",
        "DeepSpeed PR #8373",
        "Rotary positions are left out where they come by another name.",
        calling(_without_rotary),
        applies=_rotates,
    ),
    miscomputing(
        "M10 keys",
        "M10",
        "read in DeepSpeed's apply_rotary_pos_emb",
        "Queries are rotated and keys are not.",
        (FusedAttention, "_query_key_value", _keys_unrotated),
        applies=_rotates,
    ),
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
"""Wrong positions, scales and windows."""
