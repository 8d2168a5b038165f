"""Other weights for an original and its replacement, alike, in every way that a user has."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

FACTOR = 1.25


class Scaled(nn.Module):
    """A parametrization that makes of values others."""

    def forward(self, values: Tensor) -> Tensor:
        return FACTOR * values


def change_weights(mine: nn.Module, its: nn.Module, how: str) -> None:
    """Give both sides other weights, alike: their own, moved on by an element (what is scaled is not always told from what
    bfloat16 rounds). ``how`` is one of ``CHANGES``."""
    with torch.no_grad():
        for side in (mine, its):
            CHANGES[how](side)


def _in_place(side: nn.Module) -> None:
    for parameter in side.parameters():
        parameter.copy_(parameter.roll(1))


def _elsewhere(side: nn.Module) -> None:
    """As ``torch.nn.utils.vector_to_parameters`` does, and offloading."""
    for parameter in side.parameters():
        parameter.data = parameter.data.roll(1)


def _through_data(side: nn.Module) -> None:
    """As loaders do that know nothing of gradients; torch does not count what is written so."""
    for parameter in side.parameters():
        parameter.data.copy_(parameter.data.roll(1))


def _assigned(side: nn.Module) -> None:
    for owner in side.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(parameter.roll(1), requires_grad=parameter.requires_grad))


def _in_new_modules(side: nn.Module) -> None:
    for owner in list(side.modules()):
        for name, child in list(owner.named_children()):
            if not list(child.children()):
                other = copy.deepcopy(child)
                _in_place(other)
                setattr(owner, name, other)


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "changed in place": _in_place,
    "changed by new memory": _elsewhere,
    "changed through their data": _through_data,
    "assigned anew": _assigned,
    "in modules put in the old ones' places": _in_new_modules,
    "changed in place again": _in_place,  # once what was strided is not, and can be joined
}
