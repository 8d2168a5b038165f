"""A layer's part of a cache that is as long as it will ever be, and written to in place: what of caches a graph can repeat.

transformers' ``StaticLayer`` keeps keys, values and how many of them there are in tensors, and a call changes nothing else. A
graph reads and writes those very tensors, so it belongs to where they are, and keeps none of them alive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..swap import qualified_name

_CACHE = "transformers.cache_utils:StaticCache"
_LAYER = "transformers.cache_utils:StaticLayer"
_VALUES = (bool, int, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True, eq=False)
class Preallocated:
    """One layer of a static cache, used as a cache is. Two are alike, to a graph, where ``form`` is equal: every attribute, of
    tensors where they are and what they look like."""

    layer: Any
    form: tuple[Any, ...]

    def update(self, key: Tensor, value: Tensor, index: int, *extras: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, E) of all places, those of this call (B, K, T, E) among them."""
        keys, values = self.layer.update(key, value, *extras)
        return keys, values

    @property
    def tensors(self) -> list[Tensor]:
        return [one for one in vars(self.layer).values() if isinstance(one, Tensor)]

    def changed(self) -> bool:
        """Whether an attribute is another than it was, or a tensor elsewhere."""
        return form_of(self.layer) != self.form

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """What calls inside write to the layer is taken back at the end."""
        own = vars(self.layer)
        attributes = dict(own)
        saved = [(one, one.clone()) for one in self.tensors]
        try:
            yield
        finally:
            own.clear()
            own.update(attributes)
            for tensor, values in saved:
                tensor.copy_(values)


def preallocated(cache: Any, index: int | None) -> Preallocated | None:
    """The layer of ``cache`` at ``index``, where that is transformers' own static layer, and has its tensors; None for any other
    cache."""
    if index is None or qualified_name(type(cache)) != _CACHE or cache.offloading or "update" in vars(cache):
        return None
    layer = cache.layers[index]
    if qualified_name(type(layer)) != _LAYER or not layer.is_initialized:
        return None
    form = form_of(layer)
    return None if form is None else Preallocated(layer, form)


def form_of(layer: Any) -> tuple[Any, ...] | None:
    """See ``Preallocated``; None where something else than tensors and plain values is an attribute."""
    form: list[Any] = []
    for name, value in vars(layer).items():
        if type(value) is Tensor and value.layout is torch.strided:
            described = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device, value.is_inference())
            form.append((name, described))
        elif type(value) in _VALUES:
            form.append((name, value))
        else:
            return None
    return tuple(form)
