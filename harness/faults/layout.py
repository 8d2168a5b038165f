"""Faults of weight layout: which row belongs to which head, what is transposed, what is copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.anatomy import MLP, Attention, FusedQKV, LayerAnatomy, Linear, QKVLayout, SplitQKV
from policies.fused import attention as fused_attention
from policies.fused.attention import FusedAttention

from .edits import change, each_attention, each_linear, self_attention, the_mlp, with_rows
from .fault import Traits, miscomputing, misreading


def _layout(layout: QKVLayout) -> Any:
    def edit(attention: Attention) -> Attention:
        if not isinstance(attention.qkv, FusedQKV):
            return attention
        return change(attention, qkv=change(attention.qkv, layout=layout))

    return self_attention(edit)


def _swapped_gate(mlp: MLP) -> MLP:
    if mlp.gate_up is not None:
        return change(mlp, gate_up=with_rows(mlp.gate_up, lambda rows: torch.cat(rows.chunk(2)[::-1])))
    return mlp if mlp.gate is None else change(mlp, gate=mlp.up, up=mlp.gate)


def _sliced_gate(mlp: MLP) -> MLP:
    """Gate and up rows cut for two ranks as one block and put together again in rank order."""
    if mlp.gate_up is None:
        return mlp
    return change(mlp, gate_up=with_rows(mlp.gate_up, lambda rows: torch.cat((rows[::2], rows[1::2]))))


def transposed(linear: Linear) -> Linear:
    square = linear.weight.shape[0] == linear.weight.shape[1] > 1
    return change(linear, transposed=not linear.transposed) if square else linear


def _four_times(anatomy: LayerAnatomy) -> LayerAnatomy:
    """Intermediate rows beyond four times the hidden size are left out."""
    mlp, most = anatomy.mlp, 4 * anatomy.hidden_size
    if mlp.up is None or mlp.up.weight_out_in.shape[0] <= most:
        return anatomy
    gate = None if mlp.gate is None else with_rows(mlp.gate, lambda rows: rows[:most])
    down = change(mlp.down, weight=mlp.down.weight_out_in.detach()[:, :most], transposed=False)
    return change(anatomy, mlp=change(mlp, up=with_rows(mlp.up, lambda rows: rows[:most]), gate=gate, down=down))


def _lost_copy(linear: Linear) -> Linear:
    """``weight.reshape(-1).copy_(...)``: of a weight that is not contiguous, reshape makes a temporary."""
    if linear.weight.is_contiguous():
        return linear
    return change(linear, weight=torch.full_like(linear.weight.detach(), 0.1))


def _never_copied(attention: Attention) -> Attention:
    """``dst.copy(src)`` instead of ``copy_``: the destination stays as it was allocated."""
    return change(attention, out=change(attention.out, weight=torch.full_like(attention.out.weight.detach(), 0.1)))


def _rolled_heads(attention: Attention) -> Attention:
    """Query heads in another order than the heads they are joined to."""
    if not isinstance(attention.qkv, SplitQKV) or attention.heads == 1:
        return attention
    query = with_rows(attention.qkv.query, lambda rows: rows.roll(attention.head_size, dims=0))
    return change(attention, qkv=change(attention.qkv, query=query))


def _half_the_heads(attention: Attention) -> Attention:
    """The number of heads of one of two ranks, used on the whole tensor."""
    if attention.heads % 2 or attention.kv_heads % 2 or attention.alibi:
        return attention
    return change(
        attention,
        heads=attention.heads // 2,
        kv_heads=attention.kv_heads // 2,
        head_size=attention.head_size * 2,
    )


def _query_key_value(order: tuple[int, int, int]) -> Any:
    def make(honest: Any) -> Any:
        def wrong(self: FusedAttention, x: Tensor, call: Any, emit: Any) -> tuple[Tensor, ...]:
            parts = honest(self, x, call, emit)
            return tuple(parts[place] for place in order)

        return wrong

    return make


def _tiled_groups(honest: Any) -> Any:
    """Key heads repeated as 1 2 1 2 where the layer has 1 1 2 2."""

    def wrong(self: FusedAttention, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        group = query.shape[1] // key.shape[1]
        out: Tensor = honest(self, query, key.repeat(1, group, 1, 1), value.repeat(1, group, 1, 1), *rest)
        return out

    return wrong


def _tiled_for_one(honest: Any) -> Any:
    """Key heads in turn, where there is one query, whose heads a kernel for decoding deals out by itself."""

    def wrong(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        if query.shape[-2] == 1:
            group = query.shape[1] // key.shape[1]
            key, value = key.repeat(1, group, 1, 1), value.repeat(1, group, 1, 1)
        out: Tensor = honest(query, key, value, **kwargs)
        return out

    return wrong


def _first_group(honest: Any) -> Any:
    """One key head for all, whatever their number."""

    def wrong(self: FusedAttention, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, query, key[:, :1].expand_as(key), value[:, :1].expand_as(value), *rest)
        return out

    return wrong


def _unmerged(honest: Any) -> Any:
    """Context viewed as (B, T, H * E) without putting tokens before heads."""

    def wrong(query: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        context: Tensor = honest(query, *rest, **kwargs)
        return context.transpose(1, 2).reshape(context.shape)

    return wrong


def grouped(traits: Traits) -> bool:
    """Cases in whose models several groups of heads share a key head each."""
    return traits.any_block(lambda one: one.heads > one.kv_heads > 1)


def attending(make: Any) -> Any:
    """A patch of the fused attention's call of ``scaled_dot_product_attention``."""
    return fused_attention, "scaled_dot_product_attention", make


LAYOUT = (
    misreading(
        "F19 blocked",
        "F19 M06",
        "DeepSpeed PR #2579",
        "QKV rows interleaved by head are taken for three blocks.",
        _layout(QKVLayout.BLOCKED),
    ),
    misreading(
        "M06 interleaved",
        "M06 F24",
        "DeepSpeed #4903",
        "QKV rows in three blocks are taken for interleaved ones.",
        _layout(QKVLayout.INTERLEAVED),
    ),
    misreading(
        "F20 heads",
        "F20 F25",
        "DeepSpeed PR #2401, PR #4161",
        "The head count of one rank is used on the whole projection.",
        self_attention(_half_the_heads),
    ),
    misreading(
        "F22 head order",
        "F22",
        "DeepSpeed PR #2198",
        "Query heads meet the keys of their neighbours.",
        self_attention(_rolled_heads),
    ),
    misreading(
        "M07 transposed",
        "M07",
        "read in DeepSpeed's GPT-2 policy",
        "Square weights are transposed; nothing about their shape says so.",
        each_linear(transposed),
    ),
    misreading(
        "M09 gate",
        "M09",
        "read in DeepSpeed's Llama container",
        "The gate and the projection that it gates change places.",
        the_mlp(_swapped_gate),
    ),
    misreading(
        "F23 gate rows",
        "F23",
        "DeepSpeed PR #3788",
        "Rows of the joint gate and up projection are cut as one block instead of two.",
        the_mlp(_sliced_gate),
    ),
    misreading(
        "F17 four times",
        "F17",
        "DeepSpeed PR #389",
        "The intermediate size is taken to be four times the hidden size.",
        _four_times,
    ),
    misreading(
        "F18 temporary",
        "F18",
        "DeepSpeed #2452",
        "Weights that are not contiguous are copied into a temporary, and the layer runs on what was there before.",
        each_linear(_lost_copy),
    ),
    misreading(
        "F21 never copied",
        "F21",
        "DeepSpeed PR #1724",
        "A weight is allocated and never filled.",
        each_attention(_never_copied),
    ),
    miscomputing(
        "M06 key value",
        "M06",
        "DeepSpeed #4903",
        "Keys and values change places.",
        (FusedAttention, "_query_key_value", _query_key_value((0, 2, 1))),
    ),
    miscomputing(
        "M06 query key",
        "M06",
        "DeepSpeed #4903",
        "Queries and keys change places.",
        (FusedAttention, "_query_key_value", _query_key_value((1, 0, 2))),
    ),
    miscomputing(
        "F68 tiled",
        "F68 F69",
        "DeepSpeed #4016",
        "Shared key heads are dealt out in turn instead of group by group.",
        (FusedAttention, "_finish", _tiled_groups),
        applies=grouped,
    ),
    miscomputing(
        "F68 one token",
        "F68",
        "FreeToken PR #177",
        "In decoding, query heads are dealt out to the wrong key heads.",
        attending(_tiled_for_one),
        applies=grouped,
    ),
    miscomputing(
        "F68 first group",
        "F68",
        "DeepSpeed #4261",
        "All queries read the first key head.",
        (FusedAttention, "_finish", _first_group),
    ),
    miscomputing(
        "M07 unmerged",
        "M07 F58",
        "DeepSpeed #2357",
        "The heads' results are put side by side without putting tokens first.",
        attending(_unmerged),
    ),
)
