"""Packed weights without oneDNN, for tests: in float64, where oneDNN has no linear and functions are compared exactly.

Everything around a packed weight (who holds it, when it is given back, which rows are whose) is then judged in exact
arithmetic. Weights are kept back to front, so that nothing works which takes them for plain ones. It saves no time.

Shapes: x (..., D), weight (N, D), bias (N,), residual (..., N).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..anatomy import ActivationKind
from .activations import KERNELS

DTYPES = frozenset({torch.float64})
_state = {"active": False}


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """Layers that run by the plan ``packed`` pack float64 weights inside, and no plan refuses them."""
    before = _state["active"]
    _state["active"] = True
    try:
        yield
    finally:
        _state["active"] = before


def active() -> bool:
    return _state["active"]


@dataclass(frozen=True, eq=False)
class BackToFront:
    """A weight (N, D) as a vector of its elements, the last one first."""

    elements: Tensor
    shape: torch.Size


def pack(weight: Tensor) -> BackToFront:
    return BackToFront(weight.flatten().flip(0), weight.shape)


def unpack(packed: BackToFront) -> Tensor:
    return packed.elements.flip(0).view(packed.shape)


def held_bytes(packed: BackToFront) -> int:
    return packed.elements.nbytes


def linear(x: Tensor, weight: BackToFront, bias: Tensor | None) -> Tensor:
    return F.linear(x, unpack(weight), bias)


def activate(x: Tensor, weight: BackToFront, bias: Tensor | None, kind: ActivationKind) -> Tensor:
    return KERNELS[kind](linear(x, weight, bias))


def add(x: Tensor, weight: BackToFront, bias: Tensor | None, residual: Tensor) -> Tensor:
    return residual + linear(x, weight, bias)
