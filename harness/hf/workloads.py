"""Timing one transformers layer at published dimensions: building it, and what to call it with.

Shapes: B batch, T tokens, P tokens already in the cache, D hidden size, H key/value heads, E head size.
"""

from __future__ import annotations

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


def causal_mask(workload: Workload, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 1, T, P + T) additive: what eager attention is given where sdpa is given none."""
    total = workload.past + workload.tokens
    allowed = torch.ones(workload.tokens, total, dtype=torch.bool).tril(workload.past)
    mask = torch.zeros(workload.tokens, total, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return mask.expand(workload.batch, 1, -1, -1)
