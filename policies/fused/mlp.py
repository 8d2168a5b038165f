"""The MLP of a replacement. x is (..., D)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..anatomy import MLP, Activation, ActivationKind
from .linear import Projection

Emit = Callable[[str, Tensor], None]
"""Receives each named stage's tensor, for whoever wants to see where two layers part."""


def activate(activation: Activation, x: Tensor) -> Tensor:
    match activation.kind:
        case ActivationKind.GELU:
            return F.gelu(x)
        case ActivationKind.GELU_TANH:
            return F.gelu(x, approximate="tanh")
        case ActivationKind.QUICK_GELU:
            return x * torch.sigmoid(1.702 * x)
        case ActivationKind.RELU:
            return F.relu(x)
        case ActivationKind.SILU:
            return F.silu(x)
        case ActivationKind.OWN:
            return activation.function(x)


class FusedMLP:
    """Runs an ``MLP`` from its description."""

    def __init__(self, mlp: MLP) -> None:
        self.mlp = mlp
        self.projections = {linear.name: Projection.of(linear) for linear in mlp.linears}

    def __call__(self, x: Tensor, emit: Emit) -> Tensor:
        inner = self._inner(x, emit)
        emit(f"{self.mlp.down.name}:input", inner)
        out = self.projections[self.mlp.down.name](inner)
        emit(self.mlp.down.name, out)
        return out

    def _inner(self, x: Tensor, emit: Emit) -> Tensor:
        mlp = self.mlp
        if mlp.gate_up is not None:
            both = self._project(mlp.gate_up.name, x, emit)
            gate, up = both.chunk(2, dim=-1)
            return activate(mlp.activation, gate) * up
        assert mlp.up is not None
        up = self._project(mlp.up.name, x, emit)
        if mlp.gate is None:
            return activate(mlp.activation, up)
        return activate(mlp.activation, self._project(mlp.gate.name, x, emit)) * up

    def _project(self, name: str, x: Tensor, emit: Emit) -> Tensor:
        out = self.projections[name](x)
        emit(name, out)
        return out
