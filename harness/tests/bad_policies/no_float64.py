"""Its kernel runs in float32 alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.tests.bad_policies.tiny import Good, TinyLlama
from policies.swap import Swap


class Kernel(nn.Module):
    """A norm by a kernel of one dtype."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Any) -> Any:
        if x.dtype is torch.float64:
            raise TypeError("no kernel for float64")
        return self.norm(x)


class Swapped(Swap):
    """One norm of the layer, by the kernel."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.norm = layer.input_layernorm

    def install(self) -> None:
        self.layer.input_layernorm = Kernel(self.norm)

    def revert(self) -> None:
        self.layer.input_layernorm = self.norm


class BadPolicy(Good):
    """Its kernel runs in float32 alone."""

    @classmethod
    def plan(cls, module: Any) -> Swap:
        super().plan(module)
        return Swapped(module)


class Case(TinyLlama):
    """The case beside the policy."""
