"""Attention of a replacement: one projection where the layout allows it, one SDPA call.

Shapes: B batch, T queries, S keys, D hidden, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Attention, FusedQKV, Linear, QKVLayout, SplitCrossQKV, SplitQKV
from ..plans import Plan
from .linear import Emit, Projection, can_pack, held_by_nobody_else, pack, unpack
from .masks import eager, put_over, resolve, spread_if_blind
from .norm import normalise
from .packed import Packer
from .positions import rotate
from .sdpa import scaled_dot_product_attention

Cut = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Queries (B, H, T, E) and keys (B, K, T, E) out of a tensor that has them both."""


@dataclass(slots=True, kw_only=True, eq=False)  # frozen would cost a microsecond a call
class AttentionCall:
    """What one call brings to an attention block. ``cos`` and ``sin`` are (B or 1, 1, T, R). ``apart``: joined projections run
    each by itself."""

    mask: Tensor | None = None
    cache: Any = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    alibi: Tensor | None = None
    causal: bool | None = None
    extra: dict[str, Any] | None = None
    apart: bool = False


class FusedAttention:
    """Runs an ``Attention`` from its description, self or cross."""

    def __init__(
        self,
        attention: Attention,
        plan: Plan,
        *,
        packing: bool,
        shared: frozenset[str],
        packer: Packer | None = None,
        ours: tuple[Tensor, ...] = (),
    ) -> None:
        self.attention = attention
        self.grouped = attention.heads != attention.kv_heads
        linears = attention.qkv.linears
        self.out = Projection.of(attention.out, plan, packer)
        self._sizes = [n * attention.head_size for n in (attention.heads, attention.kv_heads, attention.kv_heads)]
        self.packed: Projection | None = None
        self._waiting: tuple[Linear, ...] = ()
        if packing and isinstance(attention.qkv, SplitQKV) and can_pack(linears, shared):
            if held_by_nobody_else(linears, ours):
                self.packed = _joined(linears, plan, packer)
            else:
                self._waiting = linears
        apart = packer if self.packed is None else None
        self.single = {linear.name: Projection.of(linear, plan, apart) for linear in linears}

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Tensors that lie in one storage: those made for it, and the parameters that are views of it."""
        made = () if self.packed is None else (self.packed.stored, self.packed.bias)
        return (*(one for one in made if one is not None), *self.joined)

    def may_join(self) -> bool:
        """True where parameters that were left apart, because others held their memory, are held by nobody else any more."""
        return bool(self._waiting) and held_by_nobody_else(self._waiting)

    @property
    def joined(self) -> tuple[Tensor, ...]:
        """Parameters that are views of one storage."""
        if self.packed is None:
            return ()
        return tuple(one for linear in self.attention.qkv.linears for one in linear.parameters.values())

    def joins_what_is_in(self, layer: nn.Module) -> bool:
        """Whether the joined parameters, if any are, all are those of ``layer``."""
        there = {id(one) for one in layer.parameters()} if self.packed is not None else ()
        return all(id(one) in there for one in self.joined)

    def unpack(self) -> None:
        if self.packed is not None:
            self.packed = None
            unpack(self.attention.qkv.linears)

    def attend_to_self(self, residual: Tensor, x: Tensor, call: AttentionCall, emit: Emit) -> Tensor:
        """``residual`` plus attention of ``x``, all (B, T, D): keys and values from ``x`` and what the cache holds."""
        query, key, value = self._query_key_value(x, call, emit)
        if call.cache is not None:
            key, value = call.cache.update(key, value, self.attention.cache_index, *_cache_extras(call))
        return self.out.plus(self._finish(query, key, value, call, emit), residual, emit)

    def attend_to_encoder(self, residual: Tensor, x: Tensor, encoder: Tensor, call: AttentionCall, emit: Emit) -> Tensor:
        """``residual`` plus attention of ``x`` (B, T, D) to ``encoder`` (B, S, D); an encoder-decoder cache keeps keys and
        values after the first call."""
        qkv = self.attention.qkv
        assert not isinstance(qkv, FusedQKV)
        query = self._heads(self.single[qkv.query.name](x, emit))
        key, value = self._cached_encoder(encoder, call, emit)
        return self.out.plus(self._finish(query, key, value, call, emit), residual, emit)

    def _cached_encoder(self, encoder: Tensor, call: AttentionCall, emit: Emit) -> tuple[Tensor, Tensor]:
        cache, index = call.cache, self.attention.cache_index
        if cache is not None and cache.is_updated.get(index):
            layer = cache.cross_attention_cache.layers[index]
            return layer.keys, layer.values
        key, value = self._encoder_key_value(encoder, emit)
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, index)
            cache.is_updated[index] = True
        return key, value

    def _encoder_key_value(self, encoder: Tensor, emit: Emit) -> tuple[Tensor, Tensor]:
        qkv = self.attention.qkv
        if isinstance(qkv, SplitCrossQKV):
            key, value = self.single[qkv.key_value.name](encoder, emit).chunk(2, dim=-1)
            return self._heads(key), self._heads(value)
        assert isinstance(qkv, SplitQKV)
        return (
            self._heads(self.single[qkv.key.name](encoder, emit)),
            self._heads(self.single[qkv.value.name](encoder, emit)),
        )

    def _query_key_value(self, x: Tensor, call: AttentionCall, emit: Emit) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, E), keys and values (B, K, T, E), queries and keys at their positions."""
        qkv = self.attention.qkv
        if isinstance(qkv, FusedQKV):
            fused = self.single[qkv.linear.name](x, emit)
            return self._interleaved(fused, call) if qkv.layout is QKVLayout.INTERLEAVED else self._blocked(fused, call)
        assert isinstance(qkv, SplitQKV)
        if call.apart or self.packed is None or not self.packed.runs(x) or (torch.is_grad_enabled() and _learning(qkv.linears)):
            query, key, value = (self._heads(self.single[linear.name](x, emit)) for linear in qkv.linears)
            return *self._apart(query, key, call), value
        fused = self.packed(x, emit)
        for linear, part in zip(qkv.linears, fused.split(self._sizes, dim=-1), strict=True):
            emit(linear.name, part)
        return self._blocked(fused, call)

    def _blocked(self, fused: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        """All queries, all keys, all values."""
        heads, kv_heads = self.attention.heads, self.attention.kv_heads
        both, value = self._heads(fused).split((heads + kv_heads, kv_heads), dim=1)
        query, key = self._together(both, lambda both: both.split((heads, kv_heads), dim=1), call)
        return query, key, value

    def _interleaved(self, fused: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        """The queries of each key head, the key, the value."""
        groups = fused.unflatten(-1, (self.attention.kv_heads, -1, self.attention.head_size)).permute(0, 2, 3, 1, 4)
        query, key = self._together(groups[:, :, :-1], lambda both: (both[:, :, :-1].flatten(1, 2), both[:, :, -1]), call)
        return query, key, groups[:, :, -1]

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, n * E) -> (B, n, T, E), a view."""
        return x.unflatten(-1, (-1, self.attention.head_size)).transpose(1, 2)

    def _together(self, both: Tensor, cut: Cut, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Queries and keys out of ``both`` (B, ..., T, E) at their positions.

        Those of one token are turned in half as many operations as each by itself, 1 % of a decode step of pythia-410m. From
        two tokens on, where operations count less than how their operands lie, that made its prefill 2 % slower; on a GPU
        operations count most.
        """
        if self.attention.query_norm is not None or (both.shape[-2] > 1 and not both.is_cuda):
            return self._apart(*cut(both), call)
        return cut(self._rotated(both, call))

    def _apart(self, query: Tensor, key: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
        attention = self.attention
        if attention.query_norm is not None and attention.key_norm is not None:
            query, key = normalise(attention.query_norm, query), normalise(attention.key_norm, key)
        return self._rotated(query, call), self._rotated(key, call)

    def _rotated(self, x: Tensor, call: AttentionCall) -> Tensor:
        """(B, ..., T, E), turned where the layer has rotary positions."""
        rotary = self.attention.rotary
        if rotary is None or (rotary.size is None and call.cos is None):
            return x
        assert call.cos is not None and call.sin is not None
        if x.dim() == 5 and call.cos.shape[0] > 1:
            return rotate(rotary, x, call.cos.unsqueeze(1), call.sin.unsqueeze(1))
        return rotate(rotary, x, call.cos, call.sin)

    def _finish(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, emit: Emit) -> Tensor:
        """Queries (B, H, T, E), keys and values (B, K, S, E) -> (B, T, H * E)."""
        attention, queries = self.attention, query.shape[-2]
        mask, causal = resolve(attention, call.mask, call.alibi, query, key.shape[-2], call.causal)
        if attention.even_if_blind and mask is not None:
            query, mask = spread_if_blind(query, mask)
        if causal and key.shape[-2] > queries:
            # The causal flag aligns to the first key. transformers calls a layer so only with a preallocated cache
            # that holds nothing behind these queries yet.
            key, value = key[..., :queries, :], value[..., :queries, :]
        by_products = torch.is_grad_enabled() and eager(attention)  # to ask a configuration takes microseconds
        over = put_over(attention, queries, key.shape[-2], query.device) if by_products and mask is not None else None
        context = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causal,
            scale=attention.scale,
            enable_gqa=self.grouped,
            eager=by_products,
            wide=attention.scores_in_float32,
            put_over=over,
        )
        context = context.transpose(1, 2).flatten(-2)
        emit(f"{attention.out.name}:input", context)
        return context


def _joined(linears: tuple[Linear, ...], plan: Plan, packer: Packer | None) -> Projection | None:
    if packer is None or not packer.can_pack(*linears):
        return pack(linears, plan)
    held = packer.pack(*linears)
    return None if held is None else pack(linears, plan, held)


def _learning(linears: tuple[Linear, ...]) -> bool:
    """Whether any parameter of ``linears`` wants a gradient, which a packed copy of it would not pass on."""
    return any(parameter.requires_grad for linear in linears for parameter in linear.parameters.values())


def _cache_extras(call: AttentionCall) -> tuple[dict[str, Any], ...]:
    """Older transformers want the cache's positions beside keys and values."""
    return () if call.extra is None else (call.extra,)
