"""Private torch operators of oneDNN, behind a probe, each with the public way beside it.

For float32 on a CPU ``F.linear`` calls the BLAS that torch was built with. oneDNN's own matrix product takes the same
plain weights and is faster from a few million multiplications on, most of all on processors that the BLAS does not
favour; below that its call costs more than it saves.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

SMALLEST_PRODUCT = 8_000_000
"""Multiplications from which oneDNN is at least level with the BLAS (measured on one x86 server with AVX-512)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for x (..., D), weight (N, D), bias (N,): (..., N). Same values up to rounding."""
    if _suits(x, weight, bias):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dtype is weight.dtype is torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(x) is Tensor
        and x.shape[-1] == weight.shape[1]
        and x.numel() * weight.shape[0] >= SMALLEST_PRODUCT
        and x.is_contiguous()
        and weight.is_contiguous()
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and available()
    )


@functools.cache
def available() -> bool:
    """Whether this build of torch has the operator and it works."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    try:
        return bool((torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "") == 3.0).all())
    except (RuntimeError, NotImplementedError):
        return False
