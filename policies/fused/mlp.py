"""The MLP of a replacement. x is (..., D)."""

from __future__ import annotations

from torch import Tensor

from ..anatomy import MLP
from ..plans import Plan
from .linear import Emit, Projection, activate
from .packed import Packer


class FusedMLP:
    """Runs an ``MLP`` from its description."""

    def __init__(self, mlp: MLP, plan: Plan, packer: Packer | None = None) -> None:
        self.activation = mlp.activation
        self.down = Projection.of(mlp.down, plan, packer)
        self.up, self.gate, self.gate_up = (
            None if linear is None else Projection.of(linear, plan, packer) for linear in (mlp.up, mlp.gate, mlp.gate_up)
        )

    def added_to(self, residual: Tensor, x: Tensor, emit: Emit) -> Tensor:
        """``residual`` plus the MLP of ``x``."""
        inner = self._inner(x, emit)
        emit(f"{self.down.name}:input", inner)
        return self.down.plus(inner, residual, emit)

    def _inner(self, x: Tensor, emit: Emit) -> Tensor:
        if self.gate_up is not None:
            gate, up = self.gate_up(x, emit).chunk(2, dim=-1)
            return activate(self.activation, gate) * up
        assert self.up is not None
        if self.gate is None:
            return self.up.activated(x, self.activation, emit)
        return self.gate.activated(x, self.activation, emit) * self.up(x, emit)
