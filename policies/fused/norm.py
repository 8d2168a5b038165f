"""Norms of a replacement. x is (..., D); mean and variance are taken over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..anatomy import Norm, NormKind


def normalise(norm: Norm, x: Tensor) -> Tensor:
    """Apply ``norm`` to ``x``.

    RMS norm follows Zhang and Sennrich (2019) with transformers' rounding: the statistics in float32, the product
    rounded to the input's dtype before the gain is applied, or after it where the norm ``rounds_last``. On CUDA torch has one
    kernel for all of it, which rounds last, and is taken where everything is of one dtype.
    """
    weight = norm.weight
    if weight is not None and norm.gain_offset:
        weight = weight + norm.gain_offset
    if norm.kind is NormKind.LAYER:
        return F.layer_norm(x, x.shape[-1:], weight, norm.bias, norm.eps)
    if norm.rounds_last or (
        x.is_cuda and weight is not None and weight.dtype is x.dtype and not torch.is_autocast_enabled("cuda")
    ):
        return F.rms_norm(x, x.shape[-1:], weight, norm.eps)
    wide = x.to(torch.float32)
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    unit = unit.to(x.dtype)
    return unit if weight is None else weight * unit
