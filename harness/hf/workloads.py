"""Timing one transformers layer at published dimensions: building it, and what to call it with.

Shapes: B batch, T tokens, P tokens already in the cache, S keys (P + T, or a static cache's room), D hidden size, H key/value
heads, E head size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Workload
from ..randomise import randomise


class FilledCache:
    """A cache that already holds P tokens and stays so: every timed call appends to the same past, as decoding's next
    step would, and costs one concatenation, as in a growing cache. Kernels that a new length needs are not timed."""

    def __init__(self, batch: int, heads: int, past: int, head_size: int) -> None:
        self.keys = torch.randn(batch, heads, past, head_size)
        self.values = torch.randn(batch, heads, past, head_size)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """(B, H, T, E) -> (B, H, P + T, E). What else a layer tells its cache (index, position) does not matter here."""
        if (self.keys.dtype, self.keys.device) != (keys.dtype, keys.device):
            self.keys, self.values = self.keys.to(keys), self.values.to(values)  # once: a real cache holds what it was given
        return torch.cat((self.keys, keys), dim=-2), torch.cat((self.values, values), dim=-2)


def make_layer(layer_class: Any, config: Any, *, indexed: bool) -> nn.Module:
    """The first layer of a model of ``config``, in eval mode with random weights."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        layer: nn.Module = layer_class(config, 0) if indexed else layer_class(config)
    return randomise(layer.eval(), 0)


def allowed_keys(workload: Workload) -> Tensor:
    """(B, 1, T, S), true where a query may see a key: what sdpa is given where some of a cache's places are empty."""
    allowed = torch.ones(workload.tokens, workload.keys, dtype=torch.bool).tril(workload.past)
    return allowed.expand(workload.batch, 1, -1, -1)


def causal_mask(workload: Workload) -> Tensor:
    """(B, 1, T, S) additive: what eager attention is given, always."""
    allowed = allowed_keys(workload)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def on_static_cache(workload: Workload) -> Workload:
    """The same step on a static cache that is half full."""
    return dataclasses.replace(workload, room=2 * workload.past)


def steps_by_itself() -> bool:
    """Whether a static cache of this release counts its tokens itself, and is not told by each call where to write."""
    from transformers.cache_utils import StaticLayer

    return "cumulative_length" in StaticLayer.__annotations__


def static_cache(config: Any, workload: Workload, keys: Tensor) -> Any:
    """transformers' own static cache with room for S tokens, of which ``keys`` (B, H, P, E) are there, on their device."""
    from transformers import StaticCache

    cache = StaticCache(config=config, max_cache_len=workload.room)
    cache.update(keys, torch.randn_like(keys), 0)
    return cache
