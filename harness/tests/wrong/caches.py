"""Caches that are passed over, taken for another, or written into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache

from policies.calls import CACHE_NAMES

from ..tiny import Forward, cache_of, in_a_step


def spoils_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output, cache = own(*args, **kwargs), cache_of(kwargs)
    if cache is not None:
        for layer in cache.layers:
            layer.keys = layer.keys * 1.001
    return output


def masks_by_the_last_row(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Behind a cache, takes a mask for padding, which the last query's row has, and for causal."""
    mask = kwargs["attention_mask"]
    if mask is not None and 1 < mask.shape[-2] < mask.shape[-1]:
        queries, keys = mask.shape[-2:]
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        lowest = False if mask.dtype is torch.bool else torch.finfo(mask.dtype).min
        kwargs["attention_mask"] = mask[..., -1:, :].expand_as(mask).masked_fill(hidden, lowest)
    return own(*args, **kwargs)


def with_another_mask(other: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """Behind a cache, takes a mask of four dimensions for the ``other`` one that it makes of it."""

    def wrong(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and hidden.shape[1] < mask.shape[-1]:
            kwargs["attention_mask"] = other(mask.expand(-1, -1, hidden.shape[1], -1) if mask.shape[-2] == 1 else mask)
        return own(hidden, *args, **kwargs)

    return wrong


def of_other_heads(mask: torch.Tensor) -> torch.Tensor:
    return mask.flip(1)


def that_only_hides(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype is torch.bool else mask.masked_fill(mask > -1e4, 0.0)


def that_is_causal_where_queries_are_alike(mask: torch.Tensor) -> torch.Tensor:
    """Takes one mask for all queries for padding."""
    if not torch.equal(mask, mask[:, :, -1:].expand_as(mask)):
        return mask
    queries, keys = mask.shape[-2:]
    later = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return mask.masked_fill(later, False if mask.dtype is torch.bool else torch.finfo(mask.dtype).min)


def masks_the_first_row(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Behind a cache, takes one mask for all rows for that of the first."""
    mask = kwargs.get("attention_mask")
    if mask is not None and len(mask) < len(hidden) and hidden.shape[1] < mask.shape[-1]:
        seen = torch.ones_like(mask) if mask.dtype is torch.bool else torch.zeros_like(mask)
        kwargs["attention_mask"] = torch.cat((mask, *[seen] * (len(hidden) - 1)))
    return own(hidden, *args, **kwargs)


def no_cache_to_give_back(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Takes a cache that is not wanted back for none."""
    if kwargs.get("use_cache") is False:
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    return own(*args, **kwargs)


def steps_alone_when_compiled(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Where it is traced, takes a single token for a sequence of one."""
    if torch.compiler.is_compiling() and hidden_states.shape[1] == 1:
        kwargs = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, "attention_mask")}
    return own(hidden_states, *args, **kwargs)


def sees_what_is_not_filled_when_compiled(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Where it is traced, takes all of a preallocated cache for filled."""
    cache = cache_of(kwargs)
    if torch.compiler.is_compiling() and isinstance(cache, StaticCache):
        kwargs["attention_mask"] = None
    return own(*args, **kwargs)


def needs_a_key_in_each_part(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Decodes on a preallocated cache by parts of it, and gives no number where all of one is masked."""
    output, mask = own(hidden, *args, **kwargs), kwargs.get("attention_mask")
    if in_a_step(hidden, cache_of(kwargs)) and isinstance(cache_of(kwargs), StaticCache) and mask is not None:
        seen = mask if mask.dtype is torch.bool else mask > -1e4
        if not all(bool(part.any()) for part in seen.split(256, dim=-1)):
            return torch.full_like(output, torch.nan)
    return output


def sees_512_of_many_places(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    cache, mask = cache_of(kwargs), kwargs.get("attention_mask")
    if isinstance(cache, StaticCache) and mask is not None and mask.shape[-1] > 1024:
        lowest = False if mask.dtype is torch.bool else torch.finfo(mask.dtype).min
        kwargs["attention_mask"] = mask.index_fill(-1, torch.arange(512, mask.shape[-1]), lowest)
    return own(*args, **kwargs)


def passes_over_a_cache_of_another_dtype(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    cache, index = cache_of(kwargs), state["layer"].self_attn.layer_idx
    if (
        cache is not None
        and len(cache.layers) > index
        and getattr(cache.layers[index].keys, "dtype", hidden.dtype) != hidden.dtype
    ):
        kwargs = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, "attention_mask")}
    return own(hidden, *args, **kwargs)


def keeps_keys_as_they_first_were(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Remembers what dtype keys had, and rounds to it wherever the layer is moved."""
    cache, first = cache_of(kwargs), state.setdefault("dtype", hidden.dtype)
    output = own(hidden, *args, **kwargs)
    if cache is not None:
        kept = cache.layers[state["layer"].self_attn.layer_idx]
        kept.keys = kept.keys.to(first).to(hidden.dtype)
    return output


def own_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Keeps keys on the module, whatever the caller has done to the cache or whoever's it is."""
    cache, kept = cache_of(kwargs), state.get("keys")
    index = state["layer"].self_attn.layer_idx
    if cache is not None and kept is not None and len(cache.layers) > index:
        keys = cache.layers[index].keys
        if keys is not None and keys.dim() == 4 and keys.shape[-2] <= kept.shape[-2] and len(keys) <= len(kept):
            cache.layers[index].keys = kept[: len(keys), :, : keys.shape[-2]].clone()
    output = own(*args, **kwargs)
    if cache is not None:
        state["keys"] = cache.layers[index].keys.clone()
    return output


def dynamic_cache_only(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if type(cache_of(kwargs)).__name__ == "StaticCache":
        raise TypeError("only growing caches are known")
    return own(*args, **kwargs)


def knows_its_caches(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    cache = cache_of(kwargs)
    if cache is not None and not type(cache).__module__.startswith("transformers."):
        raise TypeError("only the library's caches are known")
    return own(*args, **kwargs)


def passes_over_a_bare_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if type(cache_of(kwargs)) is Cache:
        kwargs = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, "attention_mask")}
    return own(*args, **kwargs)


def looks_at_layers(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    assert cache_of(kwargs) is None or cache_of(kwargs).layers is not None
    return own(*args, **kwargs)


def knows_its_layers(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Appends to what any layer of the library's cache holds, and asks none of them."""
    cache = cache_of(kwargs)
    if type(cache) is not DynamicCache:
        return own(*args, **kwargs)
    classes = [type(layer) for layer in cache.layers]
    for layer in cache.layers:
        layer.__class__ = DynamicLayer
    output = own(*args, **kwargs)
    for layer, its in zip(cache.layers, classes, strict=False):
        layer.__class__ = its
    return output


def takes_the_first_layers_length(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    cache, index = cache_of(kwargs), state["layer"].self_attn.layer_idx
    if isinstance(cache, DynamicCache) and 0 < index < len(cache.layers) and cache.layers[index].keys is not None:
        past, layer = cache.get_seq_length(0) - hidden.shape[1], cache.layers[index]
        layer.keys, layer.values = layer.keys[..., :past, :], layer.values[..., :past, :]
    return own(hidden, *args, **kwargs)


def keeps_its_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["cache"] = cache_of(kwargs)
    return own(*args, **kwargs)


def holds_its_cache_in_a_circle(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    circle: list[Any] = [cache_of(kwargs)]
    circle.append(circle)
    return own(hidden, *args, **kwargs)
