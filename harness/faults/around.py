"""Faults that show in what a call is made within: another thread's call, a function transform, a graph of gradients."""

from __future__ import annotations

import weakref
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from policies.fused import layer as fused_layer
from policies.fused.attention import AttentionCall
from policies.fused.transformer import EncoderStates, FusedTransformerLayer

from ..properties.transforms import tangents
from ..search import quiet
from .fault import Traits, miscomputing


def shared_workspace(honest: Any) -> Any:
    """Hidden states wait for the residual in memory that is kept by its shape, for as long as the program runs."""
    kept: dict[tuple[object, ...], Tensor] = {}

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            key = (x.shape, x.dtype, x.is_inference())
            place = kept[key] if key in kept else kept.setdefault(key, torch.empty_like(x))
            x = place.copy_(x)
        out: Tensor = honest(self, x, *rest)
        return out

    return wrong


def in_own_memory(honest: Any) -> Any:
    """Results lie in memory that a layer keeps for their shape."""
    kept: weakref.WeakKeyDictionary[Any, dict[tuple[object, ...], Tensor]] = weakref.WeakKeyDictionary()

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, *rest)
        if out.requires_grad:
            return out
        key = (out.shape, out.dtype, out.is_inference())
        return kept.setdefault(self, {}).setdefault(key, torch.empty_like(out)).copy_(out)

    return wrong


def source_detached(honest: Any) -> Any:
    """Cross-attention's kernel has gradients for parameters alone: none go back to what made the states that it reads."""

    def wrong(self: FusedTransformerLayer, x: Tensor, call: AttentionCall, encoder: EncoderStates | None = None) -> Tensor:
        if encoder is not None:
            encoder = EncoderStates(states=encoder.states.detach(), call=encoder.call)
        out: Tensor = honest(self, x, call, encoder)
        return out

    return wrong


def mask_detached(honest: Any) -> Any:
    """Attention's kernel has gradients for queries, keys and values alone."""

    def wrong(self: FusedTransformerLayer, x: Tensor, call: AttentionCall, *rest: Any) -> Tensor:
        if call.mask is not None:
            call.mask = call.mask.detach()
        out: Tensor = honest(self, x, call, *rest)
        return out

    return wrong


def past_detached(honest: Any) -> Any:
    """What a cache gives is taken for numbers: nothing goes back to a prefix that is learned, or to the calls before."""

    def wrong(self: FusedTransformerLayer, x: Tensor, call: AttentionCall, *rest: Any) -> Tensor:
        if call.cache is None:
            return cast("Tensor", honest(self, x, call, *rest))
        update = call.cache.update
        with mock.patch.object(call.cache, "update", lambda *args: tuple(one.detach() for one in update(*args))):
            return cast("Tensor", honest(self, x, call, *rest))

    return wrong


def table_of_first_call(honest: Any) -> Any:
    """A table is made at a layer's first call and kept; made in inference mode, no later call can save it for its gradients."""
    tables: weakref.WeakKeyDictionary[Any, dict[torch.dtype, Tensor]] = weakref.WeakKeyDictionary()

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        mine = tables.setdefault(self, {})
        if x.dtype not in mine:
            mine[x.dtype] = x.new_ones(x.shape[-1])
        out: Tensor = honest(self, x * mine[x.dtype], *rest)
        return out

    return wrong


def _loses_tangents(traits: Traits) -> bool:
    """Whether oneDNN, which has no derivative in forward mode, is there, and an original that has one."""
    if not (traits.layered and traits.by_onednn):
        return False
    case = traits.case
    try:
        with quiet(), case.surroundings(), torch.no_grad():
            tangents(case.run)(case.build(case.simplest), case.inputs(case.simplest))
    except RuntimeError:
        return False
    return True


AROUND = (
    miscomputing(
        "F64 threads",
        "F64",
        "flashinfer PR #4481, cuLA PR #108",
        "Two threads share a workspace, and one writes over what the other has yet to read.",
        (FusedTransformerLayer, "__call__", shared_workspace),
        expects=("several threads",),
    ),
    miscomputing(
        "F78 layer",
        "F78 M22",
        "TransformerEngine #2937",
        "What a layer gave is overwritten by its next call.",
        (FusedTransformerLayer, "__call__", in_own_memory),
        expects=("call twice",),
    ),
    miscomputing(
        "F83 source gradients",
        "F83",
        "pytorch #159299",
        "What made the states that cross-attention reads gets no gradients.",
        (FusedTransformerLayer, "__call__", source_detached),
        applies=lambda traits: traits.crosses,
        expects=("gradients",),
    ),
    miscomputing(
        "F83 mask gradients",
        "F83",
        "xformers #636",
        "A bias of attention's scores, learned or made by another network, gets no gradients.",
        (FusedTransformerLayer, "__call__", mask_detached),
        applies=lambda traits: traits.weighing_masks,
        expects=("gradients",),
    ),
    miscomputing(
        "F83 prefix gradients",
        "F83 F62",
        "optimum-habana PR #975",
        "No gradients go through a cache.",
        (FusedTransformerLayer, "__call__", past_detached),
        applies=lambda traits: traits.layered and traits.case.cached,
        expects=("gradients",),
    ),
    miscomputing(
        "F83 inference mode",
        "F83",
        "flash-attention PR #299",
        "What a layer keeps from a first call in inference mode, no call with gradients can use.",
        (FusedTransformerLayer, "__call__", table_of_first_call),
        expects=("gradients",),
    ),
    miscomputing(
        "F67 forward mode",
        "F67",
        "functorch #207, pytorch #187284",
        "A kernel without a derivative in forward mode passes on the value and loses the tangent.",
        (fused_layer, "not_plain", lambda honest: lambda hidden: None),
        applies=_loses_tangents,
        expects=("rounding float32", "function transforms"),
    ),
)
"""Right for a call by itself."""
