"""torch's kernels for the activations that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

from ..anatomy import ActivationKind
from .transforms import compiling

QUICK_GELU_SLOPE = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(QUICK_GELU_SLOPE * x)


def gelu_tanh_short(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel, 2016) with its constant cut to eight digits, as BLOOM and Megatron's fused
    bias have it. It differs from torch's kernel by 1e-9 of its value, which float64 shows and no shorter dtype."""
    if torch.is_grad_enabled() and x.requires_grad and not compiling():
        result: Tensor = _GeluTanhShort.apply(x)
        return result
    return _gelu_tanh_short(x)


def _gelu_tanh_short(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + _tanh_of_gelu(x))


def _tanh_of_gelu(x: Tensor) -> Tensor:
    return torch.tanh(0.79788456 * x * (1.0 + 0.044715 * x * x))


class _GeluTanhShort(torch.autograd.Function):
    """Keeps x alone for a backward pass, as the layers' own do; autograd would keep six tensors of its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _gelu_tanh_short(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        tanh = _tanh_of_gelu(x)
        inner = 0.79788456 * (1.0 + 3 * 0.044715 * x * x)
        return gradient * 0.5 * (1.0 + tanh + x * (1.0 - tanh * tanh) * inner)


KERNELS: Mapping[ActivationKind, Callable[[Tensor], Tensor]] = {
    ActivationKind.GELU: F.gelu,
    ActivationKind.GELU_TANH: partial(F.gelu, approximate="tanh"),
    ActivationKind.GELU_TANH_SHORT: gelu_tanh_short,
    ActivationKind.QUICK_GELU: quick_gelu,
    ActivationKind.RELU: F.relu,
    ActivationKind.SILU: F.silu,
}
"""By kind; a layer's ``OWN`` activation is a function of its own."""
