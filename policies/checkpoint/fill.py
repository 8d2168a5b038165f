"""Giving a model its weights, a few at a time.

A parameter that stays as it is stored is a view of the mapped file; one that is packed right away is read from there, and
its pages are given back. One that a replacement lays out anew, or that is wanted in another dtype, is written once, to
where it will stay: a second copy never exists.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .names import Place
from .stored import mapped


class Filler:
    """Fills ``places`` (by name), each once."""

    def __init__(self, places: dict[str, Place]) -> None:
        self.places = places
        self._done: set[Place] = set()

    def fill(self, names: Iterable[str]) -> None:
        """Fill those of these names that still have to be."""
        for place in dict.fromkeys(self.places[name] for name in names):
            if place not in self._done:
                self._put(place, self._stored(place).to(place.tensor.dtype))

    def fill_together(self, names: tuple[str, ...]) -> None:
        """Fill these, which have equal rows, one behind the other in one storage."""
        places = [self.places[name] for name in names]
        first, rows = places[0].tensor, [place.tensor.shape[0] for place in places]
        parts = torch.empty((sum(rows), *first.shape[1:]), dtype=first.dtype).split(rows)
        for place, part in zip(places, parts, strict=True):
            self._put(place, part.copy_(self._stored(place)))

    def _stored(self, place: Place) -> Tensor:
        assert place.entry is not None
        return mapped(place.entry)

    def _put(self, place: Place, value: Tensor) -> None:
        self._done.add(place)
        if isinstance(place.tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=place.tensor.requires_grad)
        for _, module, attribute in place.holders:
            setattr(module, attribute, value)
