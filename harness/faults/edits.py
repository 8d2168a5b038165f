"""Ways of changing a layer's description, part by part.

Each returns its argument itself where nothing changes: that is how a misreading shows which layers it does not concern.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

from policies.anatomy import MLP, Attention, FusedQKV, LayerAnatomy, Linear, Norm, SplitCrossQKV, SplitQKV

from .fault import Edit

Part = TypeVar("Part")


def change(part: Part, **fields: Any) -> Part:
    """``part`` with these fields, or ``part`` itself where they all are so already."""
    same = all(_same(getattr(part, name), value) for name, value in fields.items())
    return part if same else dataclasses.replace(cast("Any", part), **fields)


def _same(mine: Any, other: Any) -> bool:
    return mine is other or (isinstance(mine, int | float) and isinstance(other, int | float) and mine == other)


def each_norm(edit: Callable[[Norm], Norm]) -> Edit:
    """Change the norms of all blocks (not those inside a head)."""

    def edited(anatomy: LayerAnatomy) -> LayerAnatomy:
        names = ("attention_norm", "mlp_norm", "cross_norm")
        norms = {name: getattr(anatomy, name) for name in names}
        return change(anatomy, **{name: edit(norm) for name, norm in norms.items() if norm is not None})

    return edited


def each_attention(edit: Callable[[Attention], Attention]) -> Edit:
    """Change self-attention, and cross-attention where there is any."""

    def edited(anatomy: LayerAnatomy) -> LayerAnatomy:
        fields = {"attention": edit(anatomy.attention)}
        if anatomy.cross_attention is not None:
            fields["cross_attention"] = edit(anatomy.cross_attention)
        return change(anatomy, **fields)

    return edited


def self_attention(edit: Callable[[Attention], Attention]) -> Edit:
    """Change self-attention alone."""
    return lambda anatomy: change(anatomy, attention=edit(anatomy.attention))


def the_mlp(edit: Callable[[MLP], MLP]) -> Edit:
    return lambda anatomy: change(anatomy, mlp=edit(anatomy.mlp))


def each_qkv(edit: Callable[[Linear], Linear]) -> Callable[[Attention], Attention]:
    """Change every projection to queries, keys or values."""

    def edited(attention: Attention) -> Attention:
        qkv = attention.qkv
        if isinstance(qkv, FusedQKV):
            return change(attention, qkv=change(qkv, linear=edit(qkv.linear)))
        if isinstance(qkv, SplitQKV):
            parts = {"query": edit(qkv.query), "key": edit(qkv.key), "value": edit(qkv.value)}
            return change(attention, qkv=change(qkv, **parts))
        assert isinstance(qkv, SplitCrossQKV)
        return change(attention, qkv=change(qkv, query=edit(qkv.query), key_value=edit(qkv.key_value)))

    return edited


def each_linear(edit: Callable[[Linear], Linear]) -> Edit:
    """Change every projection of the layer."""

    def attention(block: Attention) -> Attention:
        return change(each_qkv(edit)(block), out=edit(block.out))

    def mlp(block: MLP) -> MLP:
        names = ("up", "gate", "gate_up", "down")
        linears = {name: getattr(block, name) for name in names}
        return change(block, **{name: edit(one) for name, one in linears.items() if one is not None})

    return lambda anatomy: the_mlp(mlp)(each_attention(attention)(anatomy))


def without_bias(linear: Linear) -> Linear:
    return change(linear, bias=None)


def with_rows(linear: Linear, take: Callable[[Tensor], Tensor]) -> Linear:
    """``linear`` with ``take`` applied to its outputs: to the rows of its weight and to its bias."""
    weight = take(linear.weight_out_in.detach())
    bias = None if linear.bias is None else take(linear.bias.detach())
    return change(linear, weight=weight, bias=bias, transposed=False)
