"""Scaled dot-product attention as two matrix products, where a CPU's library multiplies faster than torch's own kernel attends,
and one query's as that of several.

torch's attention kernel for CPUs keeps the scores in a cache, block by block, and multiplies by whatever library the blocks
are handed to. In bfloat16 on a processor that multiplies bfloat16 in AVX-512 (and has no AMX) that is slow: measured with two
threads on such a server, its milliseconds and those of the two products: 0.39 and 0.22 at 12 heads of 128 tokens, 3.8 and
1.7 at 16 heads of 384, 20 and 13 at 16 heads of 1024. Products of a new shape cost 0.7 more once, and one token at a time has
a new shape at each step; what they spare has to pay for that in a model of two dozen layers.

One query by itself is what that kernel does worst: two queries take half its time in bfloat16 (0.27 and 0.08 at 12 heads
after 512 tokens). Query heads that share a key head are such a number of queries, for nothing (0.70 and 0.06 at 32 heads in 8
groups; 0.08 and 0.05 in float32).

Scores are held for some heads at a time, never for all of a long sequence.

Shapes: B batch, H query heads, K key/value heads, T queries, S keys, E head size. Masks are bool (True: attend) or added, and
broadcast to (B, H, T, S).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from . import emulated, onednn
from .transforms import compiling

SCORES_AT_ONCE = 2**22
"""Elements of scores that are alive together; more of them fall out of the cache, and the products are no faster."""
SCORES_OF_A_HEAD = 2**24
"""Elements of one key head's scores beyond which their memory (32 MiB in bfloat16) is too much."""
SMALLEST_PRODUCTS = 2**21
"""Multiplications of queries by keys from which products pay. A key head's queries count as four at least."""
SCORES_BY_FLOAT32 = 2**14
"""Elements of scores from which a detour by float32 can pay."""


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    products: bool = False,
    blind: bool = True,
) -> Tensor:
    """``F.scaled_dot_product_attention`` of query (B, H, T, E), key and value (B, K, S, E): (B, H, T, E).

    ``products`` lets a call that suits them run as two products. ``is_causal`` is for T = S. ``blind``: the mask may leave
    a query nothing to attend to, and its context is zeros then, as in torch's.
    """
    if products and _suit(query, key, value, attn_mask):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if is_causal:
            return _by_products(query, key, value, _causal(query, key), scale)
        context = _by_products(query, key, value, _added(attn_mask, query.dtype), scale)
        return context if attn_mask is None or not blind else context.masked_fill(_blind(attn_mask), 0.0)
    if query.shape[-2] == 1 and query.dim() == 4 and query.device.type == "cpu" and (enable_gqa or _slow_alone(query)):
        return _of_one_query(query, key, value, attn_mask, scale)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


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
    return _faster()


@functools.cache
def _faster() -> bool:
    """Whether this is a processor on which two products in bfloat16 are faster."""
    able = onednn.capabilities()
    return bool(able.get("avx512_bf16")) and not able.get("amx_bf16")


def _suit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    if query.dtype is torch.bfloat16:
        # Compiled, torch's kernel was the faster in five layers of six, by 1 to 14 %.
        able = not compiling() and _faster()
        able = able and onednn.suits(query, key, value, mask) and value.dtype is query.dtype
    else:
        able = emulated.active() and query.dtype in emulated.DTYPES and not torch.is_grad_enabled()
    if not able or query.dim() != 4:
        return False
    queries = query.shape[1] // key.shape[1] * query.shape[2]
    pays = emulated.active() or key.numel() * max(queries, 4) >= SMALLEST_PRODUCTS
    return pays and 0 < len(query) * queries * key.shape[2] <= SCORES_OF_A_HEAD


def _by_products(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float) -> Tensor:
    heads, group = key.shape[1], query.shape[1] // key.shape[1]
    scores_of_a_head = query.shape[0] * group * query.shape[2] * key.shape[2]
    step = max(1, SCORES_AT_ONCE // scores_of_a_head)
    if step >= heads:
        return _of_heads(query, key, value, added, scale)
    parts = []
    for start in range(0, heads, step):
        some, theirs = slice(start, start + step), slice(start * group, (start + step) * group)
        parts.append(_of_heads(query[:, theirs], key[:, some], value[:, some], _for_heads(added, theirs), scale))
    return torch.cat(parts, dim=1)


def _of_heads(query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, scale: float) -> Tensor:
    # Queries of a group stand behind each other: they share their keys.
    rows, keys = query.shape[1] // key.shape[1] * query.shape[2], key.shape[2]
    scores = torch.bmm((query * scale).reshape(-1, rows, query.shape[3]), key.reshape(-1, keys, key.shape[3]).transpose(1, 2))
    if added is not None:
        scores.view(*query.shape[:3], keys).add_(added)
    context = torch.bmm(_softmax(scores), value.reshape(-1, keys, value.shape[3]))
    return context.view(*query.shape[:3], value.shape[3])


def _softmax(scores: Tensor) -> Tensor:
    """Of the last dimension. torch's kernel for bfloat16 works through whole vectors of 32 fast and through what is left of a row
    slowly. Measured with two threads on an AMD server with AVX-512, microseconds in bfloat16 and by way of float32, of 12 heads
    and 128 queries, by keys: 34 and 39 at 64, 120 and 50 at 77, 74 and 69 at 128, 144 and 83 at 141, 202 and 208 at 250."""
    keys = scores.shape[-1]
    if scores.dtype is torch.bfloat16 and 16 < keys < 256 and keys % 32 >= 8 and scores.numel() >= SCORES_BY_FLOAT32:
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(dim=-1)


def _for_heads(added: Tensor | None, heads: slice) -> Tensor | None:
    return added if added is None or added.dim() < 4 or added.shape[1] == 1 else added[:, heads]


def _causal(query: Tensor, key: Tensor) -> Tensor:
    return torch.full((query.shape[2], key.shape[2]), -math.inf, dtype=query.dtype, device=query.device).triu_(1)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


def _blind(mask: Tensor) -> Tensor:
    """Which queries may attend nowhere. Nothing is decided by values, so that a call can be captured."""
    if mask.dtype == torch.bool:
        return ~mask.any(dim=-1, keepdim=True)
    return mask.amax(dim=-1, keepdim=True) == -math.inf
