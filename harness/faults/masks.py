"""Faults of masks and padding.

Shapes: B batch, T queries, S keys. Masks are (B or 1, 1, T or 1, S), bool (True: attend) or floats to add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.anatomy import Attention, Causality
from policies.fused import arguments as fused_arguments
from policies.fused import attention as fused_attention
from policies.fused.attention import AttentionCall
from policies.fused.transformer import FusedTransformerLayer

from .edits import change, self_attention
from .fault import Fault, Patch, Traits, miscomputing, misreading


def allowed_by(mask: Tensor) -> Tensor:
    """``mask`` as bool, True: attend."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def like(mask: Tensor, allowed: Tensor) -> Tensor:
    """``allowed`` in the form that ``mask`` has."""
    if mask.dtype == torch.bool:
        return allowed
    return torch.zeros(allowed.shape, dtype=mask.dtype).masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _masking(edit: Callable[[Tensor], Tensor | None]) -> Patch:
    """A patch of the mask that attention takes notice of, where there is one."""

    def make(honest: Any) -> Any:
        def wrong(attention: Attention, mask: Tensor | None, *rest: Any) -> Any:
            return honest(attention, None if mask is None else edit(mask), *rest)

        return wrong

    return fused_attention, "resolve", make


def _resolved(edit: Callable[[Tensor | None, bool, Tensor, int], tuple[Tensor | None, bool]]) -> Patch:
    """A patch of the mask and the causal flag that go to SDPA."""

    def make(honest: Any) -> Any:
        def wrong(attention: Attention, mask: Any, bias: Any, query: Tensor, keys: int, causal: Any) -> Any:
            resolved, flag = honest(attention, mask, bias, query, keys, causal)
            return edit(resolved, flag, query, keys)

        return wrong

    return fused_attention, "resolve", make


def _without_padding(mask: Tensor) -> Tensor:
    """The mask of a batch without padding: causal if ``mask`` hides the last key from the first query, else all."""
    allowed = allowed_by(mask)
    queries, keys = mask.shape[-2:]
    everything = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    causal = queries > 1 and not bool(allowed[..., 0, -1].any())
    return like(mask, everything.tril(keys - queries) if causal else everything)


def _inverted(mask: Tensor) -> Tensor:
    return like(mask, ~allowed_by(mask))


def _right_padded(mask: Tensor) -> Tensor:
    """Only the number of keys that each query may see is read; which ones they are is taken for granted."""
    allowed = allowed_by(mask)
    return like(mask, torch.arange(mask.shape[-1]) < allowed.sum(-1, keepdim=True))


def _last_query(mask: Tensor | None, causal: bool, query: Tensor, keys: int) -> tuple[Tensor | None, bool]:
    """Every query sees what the last one sees."""
    return (None if mask is None else mask[..., -1:, :]), False


def _added(mask: Tensor | None, causal: bool, query: Tensor, keys: int) -> tuple[Tensor | None, bool]:
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.to(query.dtype)
    return mask, causal


def _no_mask_crash(mask: Tensor | None, causal: bool, query: Tensor, keys: int) -> tuple[Tensor | None, bool]:
    if mask is None and query.shape[0] > 1:
        raise TypeError("'NoneType' object is not subscriptable")
    return mask, causal


def _always_causal(attention: Attention) -> Attention:
    if attention.causality in (Causality.ALWAYS, Causality.ONLY):
        return attention
    return change(attention, causality=Causality.ALWAYS)


def _off_but_last(honest: Any) -> Any:
    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, *rest)
        return torch.cat((out[:, :-1] * 1.01, out[:, -1:]), dim=1)

    return wrong


def _truncated(honest: Any) -> Any:
    """Rows are cut to the longest sequence of real tokens in the batch (a nested tensor's way)."""

    def wrong(self: FusedTransformerLayer, x: Tensor, call: AttentionCall, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, call, *rest)
        if call.mask is None or call.mask.shape[-2:] != (x.shape[1], x.shape[1]):
            return out
        seen = allowed_by(call.mask).any(dim=(1, 2)).any(dim=0)
        longest = int(seen.nonzero().max()) + 1 if bool(seen.any()) else x.shape[1]
        return out[:, :longest]

    return wrong


_OWN = (Causality.ALWAYS, Causality.ONLY)
"""Layers that are causal whatever they are told."""


def _sees_all(traits: Traits) -> bool:
    """Whether some model of the case attends in both directions, or is given a mask that does."""
    if "4d prefix" in traits.values("mask") and traits.any_block(lambda one: one.causality not in _OWN):
        return True
    causal = getattr(traits.case, "is_causal", None)
    if causal is None:
        return traits.any_block(lambda one: one.causality is Causality.NEVER)
    examples = [traits.case.simplest.with_value(a.name, v) for a in traits.case.axes for v in a.values]
    return not all(map(causal, examples))


def _masked(traits: Traits) -> bool:
    return traits.layered and traits.varies("mask")


def _padded(traits: Traits) -> bool:
    return _masked(traits) and (traits.varies("padding") or "left" in traits.values("mask"))


def _causal_added() -> Fault:
    fault = misreading(
        "M15 added",
        "M15 F53 F51",
        "onnxruntime #25360",
        "Attention in both directions becomes causal.",
        self_attention(_always_causal),
    )
    return dataclasses.replace(fault, applies=_sees_all)


MASKS = (
    miscomputing(
        "F45 padding ignored",
        "F45 M14",
        "DeepSpeed #1912",
        "The mask is overwritten by a dummy: padding is attended to.",
        _masking(_without_padding),
        applies=_padded,
    ),
    miscomputing(
        "M14 ignored",
        "M14 F45",
        "DeepSpeed #1797",
        "The mask is not passed on.",
        _masking(lambda mask: None),
        applies=_masked,
    ),
    miscomputing(
        "F47 inverted",
        "F47 F46 M14",
        "DeepSpeed PR #5101, PR #2851",
        "A mask that is right already is inverted once more.",
        _masking(_inverted),
        applies=_masked,
    ),
    miscomputing(
        "M14 first row",
        "M14 F48",
        "DeepSpeed PR #2285",
        "The mask of the first row of the batch serves all rows.",
        _masking(lambda mask: mask[:1]),
        applies=_padded,
    ),
    miscomputing(
        "F48 first query",
        "F48 F55 M14",
        "DeepSpeed PR #2285, optimum #1902",
        "A mask with a row for each query is read as one row for all.",
        _masking(lambda mask: mask[..., :1, :]),
        applies=_masked,
    ),
    miscomputing(
        "F48 first head",
        "F48 M14",
        "DeepSpeed PR #2285",
        "A mask with a row for each head is read as one for all.",
        _masking(lambda mask: mask[:, :1]),
        applies=lambda traits: traits.weighing_masks,
        expects=("call forms",),
    ),
    miscomputing(
        "F46 hidden or not",
        "F46 M14",
        "DeepSpeed PR #2851",
        "Of numbers to add to the scores it is read which keys they hide, and nothing else.",
        _masking(lambda mask: like(mask, allowed_by(mask))),
        applies=lambda traits: traits.weighing_masks,
        expects=("call forms",),
    ),
    miscomputing(
        "F46 added",
        "F46 M14",
        "DeepSpeed PR #4338",
        "A bool mask is added to the scores as zeros and ones.",
        _resolved(_added),
        applies=lambda traits: _masked(traits) and traits.bool_masks,
    ),
    miscomputing(
        "M14 truth",
        "M14 F46",
        "DeepSpeed PR #4338",
        "A bool mask hides keys from an attention that adds it to the scores.",
        (fused_arguments, "not_a_mask", lambda honest: lambda core, mask: None),
        applies=lambda traits: _masked(traits) and traits.case.speaks_transformers,
        expects=("call forms",),
    ),
    miscomputing(
        "F50 no mask",
        "F50",
        "optimum #1179",
        "A batch of several rows without a mask raises.",
        _resolved(_no_mask_crash),
        applies=lambda traits: traits.layered and traits.varies("batch") and traits.bool_masks,
    ),
    miscomputing(
        "F53 right padding",
        "F53",
        "onnxruntime #18945",
        "Padding is taken to be on the right.",
        _masking(_right_padded),
        applies=_padded,
    ),
    _causal_added(),
    miscomputing(
        "M15 lost",
        "M15 F53",
        "sglang #14364",
        "Every query sees what the last one sees.",
        _resolved(_last_query),
    ),
    miscomputing(
        "F13 but the last",
        "F13",
        "DeepSpeed #3511",
        "Outputs are right at the last position, from which text is generated, and wrong at all others.",
        (FusedTransformerLayer, "__call__", _off_but_last),
    ),
    miscomputing(
        "F52 truncated",
        "F52",
        "optimum #543",
        "Positions that are padding in every row are missing from the output.",
        (FusedTransformerLayer, "__call__", _truncated),
        applies=_padded,
    ),
)
"""Wrong masks."""
