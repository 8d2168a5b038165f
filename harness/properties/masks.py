"""Masks of attention in the forms that torch or transformers have for one.

Shapes: B batch, H heads, T queries, S keys, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..case import Example

RANDOM = "of each query's own"
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "for two keys more": lambda mask: torch.cat((mask, mask[..., :1], mask[..., :1]), dim=-1),
    "for one key less": lambda mask: mask[..., 1:],
}
"""What makes a mask wrong; one for a single key goes for all."""


def masks(mask: Any, example: Example) -> Iterator[tuple[str, Any]]:
    """A mask (B, 1, T, S) in the other forms that torch or transformers have for one. What an original makes of them depends
    on its attention: sdpa takes truth for a key that is seen, eager adds whatever number it is."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return
    seen = mask if mask.dtype is torch.bool else mask == 0
    yield "as False", False
    yield "as truth values", seen
    yield "as integers", seen.long()
    for dtype in (torch.get_default_dtype(), torch.float16):
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        yield f"in {dtype}", added.masked_fill(~seen, torch.finfo(dtype).min)
    added = torch.zeros(seen.shape, dtype=torch.get_default_dtype(), device=seen.device)
    yield "of minus infinity", added.masked_fill(~seen, -torch.inf)
    if bool((seen == seen[:1]).all()):
        yield "of one row for all", added[:1].masked_fill(~seen[:1], torch.finfo(added.dtype).min)
    if bool((seen == seen[:, :, :1]).all()):
        yield "of one query for all", added[:, :, :1].masked_fill(~seen[:, :, :1], torch.finfo(added.dtype).min)
    for words, heads in (("all heads", 1), ("each head", heads_of(example))):
        generator = torch.Generator().manual_seed(example.seed)
        bias = torch.randn(seen.shape[0], heads, *seen.shape[2:], generator=generator, dtype=torch.get_default_dtype())
        bias = bias.to(seen.device)
        yield f"that weighs keys, for {words}", bias.masked_fill(~seen, torch.finfo(bias.dtype).min)


def of_each_query(hidden: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Masks (B, 1, T, T) of truth for ``hidden`` (B, T, D), by which each query sees itself and keys of its own."""
    batch, tokens = hidden.shape[:2]
    itself = torch.eye(tokens, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    yield RANDOM, (itself | torch.randint(2, (batch, 1, tokens, tokens), generator=generator).bool()).to(hidden.device)
    earlier, second = itself.new_ones(tokens, tokens).tril(), torch.arange(tokens) >= tokens // 2
    apart = earlier & (second[:, None] == second)
    apart[-1] = True
    yield "of two documents apart and a question on both", apart.expand(batch, 1, -1, -1).to(hidden.device)


def heads_of(example: Example) -> int:
    """How many heads the layers of ``example`` have; 1 where no axis tells."""
    values = example.values
    heads = values.get("heads") or int(str(values.get("kv_heads", 1))) * int(str(values.get("group", 1)))
    return int(str(heads))
