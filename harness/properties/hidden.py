"""Hidden states changed on their way into a layer: other strides, and outliers as large models have them.

Shapes: B batch, T tokens, D hidden size. Parts of a layer, a mixture's experts for one, may be given (B * T, D) instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

OUTLIER = 400.0
"""Half precision ends at 65,504: the square of this is beyond it."""

FAR = 500.0
BEYOND_HALF = 1e6
IMAGE = 4
"""Dimensions of a batch of images."""


@contextlib.contextmanager
def given(model: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the layer at ``path`` is given ``change`` of its hidden states (B, T, D)."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    with model.get_submodule(path).register_forward_pre_hook(before, with_kwargs=True):
        yield


def with_outlier(x: Tensor) -> Tensor:
    """The first channel of the first token hundreds of times the others (Sun et al., 2024, "Massive activations in large
    language models"); of every token of the first row where T comes first."""
    x = x.clone()
    x[..., 0, 0] += OUTLIER
    return x


def far_from_zero(x: Tensor) -> Tensor:
    """All values moved by what is hundreds of times their spread, as one channel's are by an outlier, or an image's by a bias."""
    return x + FAR


def beyond_half(x: Tensor) -> Tensor:
    """One value of the first token and row far beyond what half precision can hold."""
    x = x.clone()
    x[(0,) * x.dim()] += BEYOND_HALF
    return x


def with_zeros(x: Tensor) -> Tensor:
    """Nothing in the first row (or in the first token, where T comes first), as an embedding has for padding."""
    x = x.clone()
    x[0] = 0.0
    return x


def filled(x: Tensor, number: float, *, sequence_first: bool) -> Tensor:
    """``number`` all over the first row of a batch: one that is not finite, as an overflow further down leaves it."""
    x = x.clone()
    x.select(1 if sequence_first else 0, 0).fill_(number)
    return x


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values, with room between neighbours in memory, as in a slice."""
    return torch.stack((tensor, torch.zeros_like(tensor)), dim=-1)[..., 0]


def exchanged(tensor: Tensor) -> Tensor:
    """The same values, the first two dimensions in the other order in memory, as in a transposed tensor."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


def unaligned(tensor: Tensor) -> Tensor:
    """The same values, one element behind where memory is aligned to, as in a slice that leaves out the first."""
    room = tensor.new_empty(tensor.numel() + 1)
    return room[1:].view(tensor.shape).copy_(tensor)


def repeated(x: Tensor) -> Tensor:
    """The first row (or the first token, where T comes first) in the place of all, in memory once, as ``expand`` gives it."""
    return x[:1].expand_as(x)


LAYOUTS = {"with gaps in memory": with_gaps, "transposed in memory": exchanged, "out of line in memory": unaligned}
