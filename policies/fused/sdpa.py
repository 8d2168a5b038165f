"""Scaled dot-product attention by torch's kernel, which is given one query as several where that is faster on a CPU.

One query by itself is what that kernel does worst: two queries take half its time in bfloat16 on a processor that multiplies
bfloat16 in AVX-512 and has no AMX (0.27 and 0.08 ms at 12 heads after 512 tokens, two threads). Query heads that share a key
head are such a number of queries, for nothing (0.70 and 0.06 ms at 32 heads in 8 groups; 0.08 and 0.05 in float32).

Two matrix products instead of the kernel were up to 5 % of a layer faster in bfloat16 on such a processor. They are not taken:
scores in bfloat16 lose what the kernel keeps in float32, and from scores of about 10 on, as trained layers have them, the
result was two to seven times as far from the exact one as the kernel's.

Shapes: B batch, H query heads, K key/value heads, T queries, S keys, E head size. Masks are bool (True: attend) or added, and
broadcast to (B, H, T, S).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from . import onednn


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    eager: bool = False,
    wide: bool = False,
    put_over: Tensor | None = None,
) -> Tensor:
    """``F.scaled_dot_product_attention`` of query (B, H, T, E), key and value (B, K, S, E): (B, H, T, E). ``eager``: the original
    attends by products and a softmax, and so does this where there are gradients to come; ``wide`` with scores in float32,
    whatever the layer's dtype. ``put_over`` (T, S) bool: scores through which none goes back, whatever weight they have."""
    if eager and torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value)):
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        if wide:
            query, key = query.float(), key.float()
        return _by_products(query, key, value, attn_mask, put_over, scale)
    if query.shape[-2] == 1 and query.dim() == 4 and query.device.type == "cpu" and (enable_gqa or _slow_alone(query)):
        return _of_one_query(query, key, value, attn_mask, scale)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, put_over: Tensor | None, scale: float | None
) -> Tensor:
    """Attention as an original has it that attends so, with scores in the dtype of query and key.

    The kernel's backward pass computes weights anew from the logarithm of their sum. A query that sees nothing has scores of
    the dtype's smallest number, beside which that logarithm is lost: each weight is one there instead of a share. And it has no
    backward pass of its own, which gradients of gradients need.
    """
    group = query.shape[-3] // key.shape[-3]
    if group > 1:
        key, value = (one.repeat_interleave(group, dim=-3) for one in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if put_over is not None:
        scores = scores.masked_fill(put_over, 0.0)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    return scores.softmax(-1).to(value.dtype) @ value


def _of_one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of query (B, H, 1, E): the heads of a group as queries of their key head, a head by itself as two."""
    batch, heads, _, size = query.shape
    kv_heads = key.shape[1]
    if heads == kv_heads:
        twice = torch.cat((query, query), dim=2)
        return F.scaled_dot_product_attention(twice, key, value, attn_mask=mask, scale=scale)[:, :, :1]
    group = heads // kv_heads
    queries = query.reshape(batch, kv_heads, group, size)
    if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
        mask = mask.reshape(*mask.shape[:-3], kv_heads, group, mask.shape[-1])
    context = F.scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scale)
    return context.reshape(batch, heads, 1, value.shape[-1])


def _slow_alone(query: Tensor) -> bool:
    return query.dtype is torch.bfloat16 and _on_such_a_processor()


@torch.compiler.assume_constant_result
def _on_such_a_processor() -> bool:
    return _without_amx()


@functools.cache
def _without_amx() -> bool:
    """Whether this is a processor that multiplies bfloat16 in AVX-512 and has no AMX."""
    able = onednn.capabilities()
    return bool(able.get("avx512_bf16")) and not able.get("amx_bf16")
