"""torch's kernels for the activations that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

from ..anatomy import ActivationKind


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


KERNELS: Mapping[ActivationKind, Callable[[Tensor], Tensor]] = {
    ActivationKind.GELU: F.gelu,
    ActivationKind.GELU_TANH: partial(F.gelu, approximate="tanh"),
    ActivationKind.QUICK_GELU: quick_gelu,
    ActivationKind.RELU: F.relu,
    ActivationKind.SILU: F.silu,
}
"""By kind; a layer's ``OWN`` activation is a function of its own."""
