"""torch's kernels for the activations that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

from ..anatomy import ActivationKind

QUICK_GELU_SLOPE = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(QUICK_GELU_SLOPE * x)


def gelu_tanh_short(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel, 2016) with its constant cut to eight digits, as BLOOM and Megatron's fused
    bias have it. It differs from torch's kernel by 1e-9 of its value, which float64 shows and no shorter dtype."""
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1.0 + 0.044715 * x * x)))


KERNELS: Mapping[ActivationKind, Callable[[Tensor], Tensor]] = {
    ActivationKind.GELU: F.gelu,
    ActivationKind.GELU_TANH: partial(F.gelu, approximate="tanh"),
    ActivationKind.GELU_TANH_SHORT: gelu_tanh_short,
    ActivationKind.QUICK_GELU: quick_gelu,
    ActivationKind.RELU: F.relu,
    ActivationKind.SILU: F.silu,
}
"""By kind; a layer's ``OWN`` activation is a function of its own."""
