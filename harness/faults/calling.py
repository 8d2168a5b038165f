"""Faults of what a replacement takes, returns, writes to and remembers beyond its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.calls import Returns
from policies.fused import layer as fused_layer
from policies.fused import linear as fused_linear
from policies.fused import watch as fused_watch
from policies.fused.layer import FusedLayer
from policies.fused.state import FusedState
from policies.fused.transformer import FusedTransformerLayer

from .fault import Traits, layered, miscomputing


def _other_form(honest: Any) -> Any:
    """A tuple where the caller wants a tensor, a tensor where it wants a tuple."""

    def wrong(returns: Returns, hidden: Tensor, context: Any) -> Any:
        right = honest(returns, hidden, context)
        return hidden if isinstance(right, tuple) else (right,)

    return wrong


def _one_less(honest: Any) -> Any:
    def wrong(returns: Returns, hidden: Tensor, context: Any) -> Any:
        right = honest(returns, hidden, context)
        return right[:-1] if isinstance(right, tuple) else right

    return wrong


def _noisy(honest: Any) -> Any:
    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, *rest)
        return out + 1e-6 * torch.rand_like(out)

    return wrong


def _unwritten(honest: Any) -> Any:
    """A kernel that leaves the last element of its output to what the memory held, for a single token."""

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, *rest)
        if out.shape[1] != 1:
            return out
        buffer = torch.empty_like(out)
        buffer[..., :-1] = out[..., :-1]
        return buffer

    return wrong


def in_place(honest: Any) -> Any:
    """The result is right, and so is the caller's input now."""

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, *rest)
        x.copy_(out)
        return x

    return wrong


def as_if_in_order(honest: Any) -> Any:
    """Hidden states (B, T, D) are read by their first address, as if their elements lay one behind the other."""

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        _, tokens, width = x.shape
        out: Tensor = honest(self, x.as_strided(x.shape, (tokens * width, width, 1)), *rest)
        return out

    return wrong


def _always_original(honest: Any) -> Any:
    def wrong(self: FusedLayer, *rest: Any) -> str:
        return "not supported"

    return wrong


def _original_if_cached(honest: Any) -> Any:
    """What an argument of an unknown name comes to: the call goes to the original, which knows it."""

    def wrong(self: FusedLayer, state: FusedState, arguments: Any, *rest: Any) -> Any:
        return "argument cache" if arguments.call.cache is not None else honest(self, state, arguments, *rest)

    return wrong


def _broken_fallback(honest: Any) -> Any:
    def wrong(self: FusedLayer, *rest: Any) -> Any:
        reason = honest(self, *rest)
        if reason is not None:
            raise TypeError("forward() takes 2 positional arguments but 5 were given")
        return None

    return wrong


def _unasked_weights(honest: Any) -> Any:
    """``output_attentions`` is taken in and forgotten."""

    def wrong(self: FusedLayer, *rest: Any) -> Any:
        reason = honest(self, *rest)
        return None if reason == "attention weights asked for" else reason

    return wrong


def second_copy(honest: Any) -> Any:
    """Packed weights are a copy: they cost memory, and an update of the layer's own parameters does not reach them."""

    def wrong(parameters: list[Tensor]) -> Tensor:
        return torch.cat([parameter.detach() for parameter in parameters])

    return wrong


def _not_given_back(honest: Any) -> Any:
    def wrong(self: FusedTransformerLayer, by_rows: frozenset[str]) -> None:
        return None

    return wrong


def _tuples(traits: Traits) -> bool:
    return any(call.returns is not Returns.TENSOR for call in traits.calls)


CALLING = (
    miscomputing(
        "F16 form",
        "F16 M21",
        "DeepSpeed #1485, transformers #14916",
        "A tensor is returned where the caller wants a tuple, a tuple where it wants a tensor.",
        (fused_layer, "in_form", _other_form),
    ),
    miscomputing(
        "M21 shorter",
        "M21",
        "DeepSpeed PR #1491",
        "The tuple that is returned lacks its last value.",
        (fused_layer, "in_form", _one_less),
        applies=_tuples,
        expects=("layer equality",),
    ),
    miscomputing(
        "F64 noise",
        "F64",
        "DeepSpeed #1950",
        "Results differ a little from run to run.",
        (FusedTransformerLayer, "__call__", _noisy),
    ),
    miscomputing(
        "F64 unwritten",
        "F64",
        "DeepSpeed #2243",
        "A part of the output is whatever the memory held, for a single token.",
        (FusedTransformerLayer, "__call__", _unwritten),
    ),
    miscomputing(
        "F57 in place",
        "F57",
        "DeepSpeed PR #3256",
        "The result is written over the caller's input.",
        (FusedTransformerLayer, "__call__", in_place),
        expects=("hands off", "layer equality"),
    ),
    miscomputing(
        "F48 in order",
        "F48",
        "TransformerEngine PR #1017, vllm PR #3324",
        "Hidden states are read as if they lay in order in memory, as a slice or a transposed tensor does not.",
        (FusedTransformerLayer, "__call__", as_if_in_order),
        expects=("call forms",),
    ),
    miscomputing(
        "F82 never fused",
        "F82",
        "DeepSpeed #2606",
        "The replacement runs the original every time: right, and of no use.",
        (FusedLayer, "_why_not", _always_original),
    ),
    miscomputing(
        "F82 cached calls",
        "F82 F62",
        "transformers 5.24 renamed its layers' argument",
        "A call with a cache, of a name that the policy does not know, runs the original: right, and of no use.",
        (FusedLayer, "_why_not", _original_if_cached),
        applies=lambda traits: traits.layered and traits.case.cached,
        expects=("cache",),
    ),
    miscomputing(
        "F38 fallback",
        "F38",
        "DeepSpeed PR #8373",
        "The path back to the original's own forward raises, where it is taken.",
        (FusedLayer, "_why_not", _broken_fallback),
        expects=("outputs asked for",),
    ),
    miscomputing(
        "F50 weights",
        "F50",
        "optimum #1302",
        "Attention weights are asked for and not given.",
        (FusedLayer, "_why_not", _unasked_weights),
        applies=lambda traits: layered(traits) and traits.case.speaks_transformers,
        expects=("outputs asked for",),
    ),
    miscomputing(
        "F50 hooks",
        "F50",
        "optimum #1306",
        "Hooks on modules inside the layer are passed over.",
        (fused_layer, "inner_hooks", lambda honest: lambda modules: None),
        expects=("hooks",),
    ),
    miscomputing(
        "F50 backward hooks",
        "F50",
        "optimum #1306",
        "Hooks on the way back through modules inside the layer are passed over.",
        (fused_watch, "_backward_hooks", lambda honest: lambda modules: None),
        expects=("gradients",),
    ),
    miscomputing(
        "F79 packed copy",
        "F79 F30 M24",
        "DeepSpeed #1332, diffusers #11903",
        "Packed weights are a second copy, which updates do not reach.",
        (fused_linear, "_take_over", second_copy),
        applies=lambda traits: traits.joins,
        expects=("storages", "parameter accounting"),
    ),
    miscomputing(
        "F30 unfuse",
        "F30 F83",
        "diffusers #11903",
        "Reverting leaves the weights in the storage of the packed ones.",
        (FusedTransformerLayer, "give_back", _not_given_back),
        applies=lambda traits: traits.joins,
        expects=("revert", "storages"),
    ),
)
"""Wrong forms and memories."""
