"""Faults of rotary positions.

Shapes: B batch, H heads, T tokens, E head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.anatomy import Attention, Rotary, RotaryStyle
from policies.calls import RotarySource
from policies.fused import attention as fused_attention
from policies.fused.attention import AttentionCall, FusedAttention
from policies.fused.transformer import silent

from .edits import change, self_attention
from .fault import Traits, miscomputing, misreading
from .understood import calling, past_tokens


def _rotary(edit: Callable[[Rotary], Rotary]) -> Any:
    def edited(attention: Attention) -> Attention:
        return attention if attention.rotary is None else change(attention, rotary=edit(attention.rotary))

    return self_attention(edited)


def _other_style(rotary: Rotary) -> Rotary:
    if rotary.size is not None and rotary.size <= 2:
        return rotary
    half = rotary.style is RotaryStyle.HALF
    return change(rotary, style=RotaryStyle.EVERY_TWO if half else RotaryStyle.HALF)


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


def _of_the_first_row(call: AttentionCall, attention: Attention) -> AttentionCall:
    """Every row of the batch stands where the first does."""
    if call.cos is None or call.sin is None:
        return call
    return dataclasses.replace(call, cos=call.cos[:1], sin=call.sin[:1])


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


ROTARY = (
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
        applies=lambda traits: _rotates(traits) and traits.varies("rope"),
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
        "F45 positions",
        "F45 M10",
        "DeepSpeed #1797",
        "All rows of a padded batch are rotated as the first row is.",
        calling(_of_the_first_row),
        applies=lambda traits: traits.varies("positions") and _rotates(traits),
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
)
"""Wrong angles, wrong pairs, wrong tokens."""
