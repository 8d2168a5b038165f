"""Faults of the memory that attention kernels work in: how much of it there is, and where a row, a token or a block lies.

Shapes: B batch, H heads, T tokens, S keys, E head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.fused.attention import FusedAttention

from .fault import Patch, miscomputing


def finishing(edit: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Patch:
    """A patch of queries, keys and values on their way to SDPA."""

    def make(honest: Any) -> Any:
        def wrong(self: FusedAttention, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
            out: Tensor = honest(self, *edit(query, key, value), *rest)
            return out

        return wrong

    return FusedAttention, "_finish", make


def _first_row(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query, key[:1].expand_as(key), value[:1].expand_as(value)


ALLOCATED = 4
"""Tokens for which the faulty workspaces have room."""
RING = 60
"""Calls for which the faulty ring has buffers."""
BLOCK = 64
"""Keys that the faulty softmax kernel takes at a time."""


def _overwritten(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What comes after the allocated tokens is written over the last of them."""
    if key.shape[-2] <= ALLOCATED:
        return query, key, value
    index = torch.arange(key.shape[-2]).clamp(max=ALLOCATED - 1)
    return query, key[..., index, :], value[..., index, :]


def _overlapping(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The buffer of the keys begins before that of the queries ends, once the prompt is long enough."""
    if query.shape[-2] <= ALLOCATED:
        return query, key, value
    query = query.clone()
    query[:, : key.shape[1], -1] = key[:, : query.shape[1], 0]
    return query, key, value


def _wrapping(honest: Any) -> Any:
    """A call long after a layer's first reads the values that its last one left."""
    calls: weakref.WeakKeyDictionary[FusedAttention, int] = weakref.WeakKeyDictionary()

    def wrong(self: FusedAttention, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        calls[self] = calls.get(self, 0) + 1
        out: Tensor = honest(self, query, key, value if calls[self] <= RING else value.roll(1, -1), *rest)
        return out

    return wrong


def without_from(x: Tensor, dim: int, first: int) -> Tensor:
    """``x`` with zeros from ``first`` on in dimension ``dim``."""
    x = x.clone()
    x.narrow(dim, first, x.shape[dim] - first).zero_()
    return x


def _kept(honest: Any) -> Any:
    kept: list[Tensor] = []

    def wrong(self: FusedAttention, query: Tensor, *rest: Any) -> Tensor:
        kept.append(query.detach())
        out: Tensor = honest(self, query, *rest)
        return out

    return wrong


def _kept_output(honest: Any) -> Any:
    kept: weakref.WeakKeyDictionary[FusedAttention, Tensor] = weakref.WeakKeyDictionary()

    def wrong(self: FusedAttention, *given: Any) -> Tensor:
        kept[self] = honest(self, *given)
        return kept[self]

    return wrong


def _kept_of_each_length(honest: Any) -> Any:
    kept: dict[tuple[int, int], Tensor] = {}

    def wrong(self: FusedAttention, query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        lengths = query.shape[-2], key.shape[-2]
        kept.setdefault(lengths, torch.ones(lengths, dtype=torch.bool).tril())
        out: Tensor = honest(self, query, key, *rest)
        return out

    return wrong


def whole_blocks(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is left behind the last whole block of keys, where there is one, counts for nothing."""
    if key.shape[-2] <= BLOCK:
        return query, key, value
    return query, key, without_from(value, -2, key.shape[-2] // BLOCK * BLOCK)


def sized_by_first_call(honest: Any) -> Any:
    """A workspace allocated at a layer's first call; a larger call later does not fit in."""
    room: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def wrong(self: FusedAttention, query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        needed = query.shape[0] * key.shape[-2]
        if needed > room.setdefault(self, needed):
            raise RuntimeError("the size of tensor a must match the size of tensor b")
        out: Tensor = honest(self, query, key, *rest)
        return out

    return wrong


def _odd_sizes(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if query.shape[1] * query.shape[-1] % 4:
        raise RuntimeError("floating point exception: hidden size must be a multiple of 4")
    return query, key, value


WORKSPACE = (
    miscomputing(
        "F58 batch stride",
        "F58 M17",
        "DeepSpeed #2357",
        "Every row of the batch reads the first row's keys and values.",
        finishing(_first_row),
    ),
    miscomputing(
        "F59 overwritten",
        "F59",
        "DeepSpeed #2485",
        "Tokens beyond the allocated number are written over the last one.",
        finishing(_overwritten),
    ),
    miscomputing(
        "F57 overlap",
        "F57",
        "DeepSpeed PR #2359",
        "Buffers of queries and keys overlap for long prompts.",
        finishing(_overlapping),
    ),
    miscomputing(
        "F60 first size",
        "F60 M17",
        "DeepSpeed #3402",
        "The workspace has the size of the first call.",
        (FusedAttention, "_finish", sized_by_first_call),
        expects=("changing shapes", "cache"),
    ),
    miscomputing(
        "F65 odd sizes",
        "F65",
        "DeepSpeed #1925",
        "Hidden sizes that the kernel is not made for raise.",
        finishing(_odd_sizes),
    ),
    miscomputing(
        "F65 blocks",
        "F65",
        "DeepSpeed #785",
        "The softmax kernel works in blocks of keys, and what is left behind the last is lost.",
        finishing(whole_blocks),
        expects=("long sequences",),
    ),
    miscomputing(
        "F60 wraps around",
        "F60",
        "DeepSpeed #3402",
        "After some dozens of calls a ring of buffers is full, and what is read is a call older.",
        (FusedAttention, "_finish", _wrapping),
        expects=("many calls",),
    ),
    miscomputing(
        "F60 kept",
        "F60",
        "apex #1999",
        "What a call was given stays in memory when the call is over.",
        (FusedAttention, "_finish", _kept),
        expects=("flat memory",),
    ),
    miscomputing(
        "F60 its output",
        "F60",
        "apex #1999",
        "The last output stays until the next one, and with it all that a backward pass through it needs.",
        (FusedAttention, "_finish", _kept_output),
        expects=("backward memory",),
    ),
    miscomputing(
        "F60 of each length",
        "F60 F79",
        "DeepSpeed #3402",
        "A mask is made once for each pair of lengths, and kept for ever.",
        (FusedAttention, "_finish", _kept_of_each_length),
        expects=("flat memory",),
    ),
)
"""Wrong sizes and places."""
