"""Faults of the key/value cache and of state that outlives a call.

Shapes: B batch, H heads, T tokens, S keys, E head size.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.fused import arguments as fused_arguments
from policies.fused.attention import AttentionCall, FusedAttention
from policies.releases import at_least

from .fault import Patch, Traits, miscomputing
from .understood import calling, past_tokens


def _tells_its_cache(traits: Traits) -> bool:
    """Whether layers hand to their cache what they were given besides."""
    names = ("HFBertLayerPolicy", "HFGPT2LayerPolicy", "HFGPTJLayerPolicy", "HFOPTLayerPolicy", "LlamaLayerPolicy")
    return at_least("transformers", "5.24") and caches(traits) and traits.has_policy(*names)


class _Cache:
    """A cache that answers as ``update`` does, a function of (attention, the real cache, keys, values, extras)."""

    def __init__(self, attention: FusedAttention, cache: Any, update: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._attention = attention
        self._cache = cache
        self._update = update

    def update(self, keys: Tensor, values: Tensor, index: int | None, *extras: Any) -> tuple[Tensor, Tensor]:
        return self._update(self._attention, self._cache, keys, values, index, *extras)


def updating(make: Callable[[], Callable[..., tuple[Tensor, Tensor]]]) -> Patch:
    """A patch of how self-attention uses the cache it is given."""

    def patch(honest: Any) -> Any:
        update = make()

        def wrong(self: FusedAttention, residual: Tensor, x: Tensor, call: AttentionCall, emit: Any) -> Tensor:
            if call.cache is not None:
                call = dataclasses.replace(call, cache=_Cache(self, call.cache, update))
            out: Tensor = honest(self, residual, x, call, emit)
            return out

        return wrong

    return FusedAttention, "attend_to_self", patch


def _not_stored() -> Any:
    def update(_: Any, cache: Any, *rest: Any) -> Any:
        return copy.deepcopy(cache).update(*rest)

    return update


def past_unused() -> Any:
    def update(_: Any, cache: Any, keys: Tensor, values: Tensor, *rest: Any) -> Any:
        cache.update(keys, values, *rest)
        return keys, values

    return update


def _first_slot() -> Any:
    def update(_: Any, cache: Any, keys: Tensor, values: Tensor, index: Any, *rest: Any) -> Any:
        return cache.update(keys, values, 0, *rest)

    return update


def _what_is_stored() -> Any:
    """Keys and values are taken from where the library's own cache has them, whatever ``update`` gives back."""

    def update(_: Any, cache: Any, keys: Tensor, values: Tensor, index: int, *rest: Any) -> Any:
        cache.update(keys, values, index, *rest)
        stored = getattr(cache, "self_attention_cache", cache).layers[index]
        return stored.keys, stored.values

    return update


def _wrong_strides() -> Any:
    """What is left in the cache has its tokens before its heads, under the shape of heads before tokens."""

    def update(_: Any, cache: Any, keys: Tensor, values: Tensor, index: int, *rest: Any) -> Any:
        result = cache.update(keys, values, index, *rest)
        stored = cache.layers[index]
        stored.keys = result[0].transpose(1, 2).reshape(result[0].shape)
        return result

    return update


def own_copy() -> Any:
    """Keys and values are kept by the layer itself; what the caller does to its cache between calls is not seen."""
    kept: weakref.WeakKeyDictionary[Any, tuple[Any, Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def update(attention: Any, cache: Any, keys: Tensor, values: Tensor, index: Any, *rest: Any) -> Any:
        before = kept.get(attention)
        result = cache.update(keys, values, index, *rest)
        if before is not None and before[0]() is cache and before[1].shape[0] == keys.shape[0]:
            mine = torch.cat((before[1], keys), dim=-2), torch.cat((before[2], values), dim=-2)
            result = mine if mine[0].shape == result[0].shape else result
        kept[attention] = (weakref.ref(cache), *result)
        return result

    return update


def stale_prompt() -> Any:
    """A prompt with an empty cache reads the keys and values that the last prompt left in the workspace."""
    kept: weakref.WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def update(attention: Any, cache: Any, keys: Tensor, values: Tensor, index: Any, *rest: Any) -> Any:
        fresh = cache.get_seq_length(index) == 0
        result = cache.update(keys, values, index, *rest)
        before = kept.get(attention)
        kept[attention] = result
        if not fresh or before is None:
            return result
        left = before[0]
        rows = torch.arange(result[0].shape[0]) % left.shape[0]
        tokens = torch.arange(result[0].shape[-2]) % left.shape[-2]
        return tuple(one[rows][..., tokens, :] for one in before)

    return update


def _falsy(call: AttentionCall, attention: Any) -> AttentionCall:
    """``cache or None``: an empty cache is falsy."""
    empty = call.cache is not None and past_tokens(call, attention) == 0
    return dataclasses.replace(call, cache=None) if empty else call


def _first_encoder(honest: Any) -> Any:
    """Keys and values of the encoder's states are kept on the layer and never made again."""
    kept: weakref.WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()

    def wrong(self: FusedAttention, *rest: Any) -> tuple[Tensor, Tensor]:
        return kept.setdefault(self, honest(self, *rest))

    return wrong


def _broken_caller(honest: Any) -> Any:
    def wrong(self: FusedAttention, *rest: Any) -> Tensor:
        raise TypeError("attend() takes 5 positional arguments but 6 were given")

    return wrong


def caches(traits: Traits) -> bool:
    return traits.layered and traits.case.cached


def _caches_layers(traits: Traits) -> bool:
    return caches(traits) and traits.varies("layers")


CACHE = (
    miscomputing(
        "M17 not returned",
        "M17 F62",
        "DeepSpeed PR #7428",
        "New keys and values are used and not stored.",
        updating(_not_stored),
        applies=caches,
        expects=("cache",),
    ),
    miscomputing(
        "F62 past unused",
        "F62",
        "DeepSpeed PR #7428",
        "Keys and values of earlier calls are kept and not used.",
        updating(past_unused),
        applies=caches,
        expects=("cache",),
    ),
    miscomputing(
        "F62 argument",
        "F62 M17",
        "DeepSpeed PR #7428",
        "The cache comes under another name than the one that is read.",
        calling(lambda call, attention: dataclasses.replace(call, cache=None)),
        applies=caches,
        expects=("cache",),
    ),
    miscomputing(
        "F62 strides",
        "F62",
        "DeepSpeed PR #2828",
        "Keys are left in the cache in another order than the one their shape says.",
        updating(_wrong_strides),
        applies=caches,
        expects=("cache",),
    ),
    miscomputing(
        "F62 what is stored",
        "F62",
        "DeepSpeed PR #7428",
        "Keys and values are read from inside the cache, which gives back others than it stores.",
        updating(_what_is_stored),
        applies=caches,
        expects=("cache of another class",),
    ),
    miscomputing(
        "F62 told nothing",
        "F62",
        "transformers 5.24's Cache.update",
        "A cache that reads what a layer was given besides is not told it.",
        (fused_arguments, "_reads_more", lambda honest: lambda cache: False),
        applies=_tells_its_cache,
        expects=("cache of another class",),
    ),
    miscomputing(
        "F56 falsy",
        "F56",
        "DeepSpeed PR #2196",
        "An empty cache is taken for none.",
        calling(_falsy),
        applies=caches,
        expects=("cache",),
    ),
    miscomputing(
        "F56 stale prompt",
        "F56 M17",
        "DeepSpeed PR #2196, PR #2669",
        "A new prompt goes on from the keys that the last one left on the layer.",
        updating(stale_prompt),
        applies=caches,
        expects=("fresh cache",),
    ),
    miscomputing(
        "F61 own copy",
        "F61",
        "DeepSpeed #2506",
        "The layer keeps keys and values to itself and does not see the caller reorder its cache.",
        updating(own_copy),
        applies=caches,
        expects=("edited cache",),
    ),
    miscomputing(
        "F63 layer index",
        "F63",
        "DeepSpeed #1410",
        "Every layer writes to the cache's first slot.",
        updating(_first_slot),
        applies=_caches_layers,
        expects=("cache",),
    ),
    miscomputing(
        "M17 encoder",
        "M17 F56",
        "DeepSpeed PR #2669",
        "Cross-attention keeps the keys of the first encoder states that it has seen.",
        (FusedAttention, "_encoder_key_value", _first_encoder),
        applies=lambda traits: traits.crosses,
        expects=("call order", "call twice"),
    ),
    miscomputing(
        "F34 other caller",
        "F34",
        "DeepSpeed PR #4656",
        "A shared operation has a new signature, and cross-attention still calls the old one.",
        (FusedAttention, "attend_to_encoder", _broken_caller),
        applies=lambda traits: traits.crosses,
    ),
)
"""Wrong caches and state."""
