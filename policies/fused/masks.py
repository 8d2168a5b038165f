"""From what a layer is given to what scaled dot-product attention takes.

Masks arrive as None, as bool (True: attend) or as floats to add. They leave as (mask or None, causal flag): a mask is
built only where the flag cannot say the same.

Shapes: B batch, H heads, T queries, S keys. The T queries are the last T of the S positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..anatomy import Attention, Causality
from ..releases import at_least

_ONE_LONGER = not at_least("transformers", "5.4")
"""transformers 5.0 made masks one key longer than there are keys, and its layers cut them. Any other length is an error, here as
there, and torch's attention raises it."""


def resolve(
    attention: Attention, mask: Tensor | None, bias: Tensor | None, query: Tensor, keys: int, causal: bool | None
) -> tuple[Tensor | None, bool]:
    """The mask to pass to SDPA and whether to set its causal flag.

    ``bias`` (ALiBi) is added to the scores. ``causal`` overrules the layer's own causality where it is not None.
    """
    queries = query.shape[-2]
    always = attention.causality in (Causality.ALWAYS, Causality.ONLY)
    if attention.causality is Causality.ONLY:
        mask = None
    if _ONE_LONGER and mask is not None and mask.shape[-1] == keys + 1:
        mask = mask[..., :keys]
    if causal is None:
        causal = attention.causality is Causality.IF_NO_MASK
    if not always and mask is None and queries > 1 and causal and bias is None:
        return None, True
    if always and mask is None and queries == keys and not _window_bites(attention, keys):
        return None, queries > 1
    if always and (queries > 1 or _window_bites(attention, keys)):
        allowed = _own_mask(attention, queries, keys, query.device)
        mask = allowed if mask is None else _restrict(mask, allowed)
    if mask is not None and mask.dtype is torch.float16 and query.dtype is torch.float16 and _rounds_scores(attention):
        mask = _outweighing(mask)
    if bias is not None:
        return _add_bias(bias.to(query.dtype), mask, query.dtype), False
    return (None if mask is None else _as_taken(mask, query.dtype)), False


def _as_taken(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """``mask`` as it may stand beside scores of ``dtype``. One of float32 stays so: half precision would lose digits of it, and
    make its smallest number minus infinity, by which a query that sees nothing sees otherwise."""
    return mask if mask.dtype in (torch.bool, torch.float32) else mask.to(dtype)


def _rounds_scores(attention: Attention) -> bool:
    """Whether the original adds the mask in the layer's own dtype. torch's attention adds in float32."""
    return not attention.scores_in_float32 and eager(attention)


def eager(attention: Attention) -> bool:
    """Whether the original attends by matrix products and a softmax, and not by torch's kernel."""
    config = getattr(attention.module, "config", None)
    return getattr(config, "_attn_implementation", "eager") == "eager"  # BLOOM and Megatron have no other


def put_over(attention: Attention, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """(T, S) bool: scores in whose place the original puts a number, through which no gradient goes back: those that a table of
    its own forbids, where it has one."""
    return None if attention.causality is not Causality.ALWAYS else ~_own_mask(attention, queries, keys, device)


def _outweighing(mask: Tensor) -> Tensor:
    """``mask`` of float16 in float32, its smallest number with it. Beside that, float16 keeps nothing of a score up to 16: a
    query that sees nothing attends to every key evenly."""
    smallest = mask == torch.finfo(mask.dtype).min
    return mask.float().masked_fill_(smallest, torch.finfo(torch.float32).min)


def spread_if_blind(query: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``query`` (B, H, T, E) and bool ``mask``, changed so that a query which may attend nowhere attends evenly."""
    blind = ~mask.any(dim=-1, keepdim=True)
    return query.masked_fill(blind, 0.0), mask | blind


def _window_bites(attention: Attention, keys: int) -> bool:
    return attention.window is not None and keys > attention.window


def _own_mask(attention: Attention, queries: int, keys: int, device: torch.device) -> Tensor:
    """(T, S) bool: causal, and no further back than the window."""
    positions = torch.arange(keys, device=device)
    distance = positions[keys - queries :, None] - positions
    allowed = distance >= 0
    return allowed if attention.window is None else allowed & (distance < attention.window)


def _restrict(mask: Tensor, allowed: Tensor) -> Tensor:
    """``mask`` where the layer allows. Forbidden by both is more than forbidden by one, which tells where all is forbidden:
    GPT-Neo, whose scores are float32 in any dtype, puts their smallest number in place of one, and adds the mask to it."""
    if mask.dtype == torch.bool:
        return mask & allowed
    own = torch.zeros_like(allowed, dtype=torch.float32)  # not so in exact mode, as the original's scores are not
    return mask.to(torch.promote_types(mask.dtype, own.dtype)) + own.masked_fill(~allowed, torch.finfo(own.dtype).min)


def _add_bias(bias: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(dtype).min)
    return bias + _as_taken(mask, dtype)
