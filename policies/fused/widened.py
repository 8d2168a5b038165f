"""Linears and convolutions of half precision in float32, for processors that multiply none: oneDNN has no bfloat16 for AVX2
alone, and no float16 for most, and what torch does there instead takes many times as long as float32.

A linear's weight is widened by some rows at a time, so that there is never more than a block of it twice, and that is still in
a processor's cache when it is multiplied by. Sums are kept in float32, as torch keeps them, and rounded once.

Shapes: x (..., D), weight (N, D) with any strides, bias (N,), residual (..., N).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..anatomy import ActivationKind
from . import onednn
from .activations import KERNELS
from .transforms import compiling

HALVES = (torch.bfloat16, torch.float16)
ROWS = 8
"""Rows of x from which widening a weight costs less than it saves. Measured with two threads on an AMD server without AVX-512,
milliseconds of torch and here, D by N, in bfloat16: 4 rows 1.1 and 1.1 at 768 by 3072, 0.9 and 0.9 at 3072 by 768; 8 rows 1.9
and 0.9, 1.8 and 1.0; 128 rows 32 and 5.3, 28 and 5.6, 206 and 40 at 2048 by 8192. In float16 8 rows 1.6 and 1.1, 128 rows 27
and 5.8 at 768 by 3072."""
BLOCK = 1024
"""Rows of the weight that are widened at a time."""


def suits(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether this linear may run here, and is faster so. ``others`` are the call's bias and residual."""
    return faster(x, weight) and _may_run(x, weight, *others)


def faster(x: Tensor, weight: Tensor) -> bool:
    """Whether this linear is faster here, where it may run."""
    return x.dtype in HALVES and not compiling() and x.numel() // weight.shape[1] >= ROWS and slow(x.dtype)


def suits_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """As ``suits``, of a convolution. Measured with two threads on an AMD server without AVX-512, milliseconds of torch and
    here in bfloat16, 320 channels of 32 by 32 pixels, 3 by 3: 2580 and 15 where all is contiguous, 88 and 14 in channels_last."""
    return x.dtype in HALVES and _may_run(x, weight, bias)


def _may_run(x: Tensor, *others: Tensor | None) -> bool:
    """Whether this processor does better in float32: CPU tensors of one dtype, nobody differentiating, casting or tracing."""
    return (
        x.device.type == "cpu"
        and all(one is None or (one.dtype is x.dtype and one.device.type == "cpu") for one in others)
        and not compiling()
        and slow(x.dtype)
        and not (torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, *others)))
        and not torch.is_autocast_enabled("cpu")
    )


@functools.cache
def slow(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies nothing of ``dtype``, one of ``HALVES``."""
    if dtype is torch.bfloat16:
        return not onednn.multiplies(dtype)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
    return supported is not None and not supported()


def widens(parameter: Tensor) -> bool:
    """Whether large products with this parameter run here."""
    return parameter.dtype in HALVES and parameter.device.type in ("cpu", "meta") and slow(parameter.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _by_blocks(x, weight, bias, lambda product, which: product)


def activate(x: Tensor, weight: Tensor, bias: Tensor | None, kind: ActivationKind) -> Tensor:
    """``kind`` (one of ``KERNELS``) of the linear."""
    return _by_blocks(x, weight, bias, lambda product, which: KERNELS[kind](product))


def add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """The linear plus ``residual``, which is not changed."""
    return _by_blocks(x, weight, bias, lambda product, which: product.add_(residual[..., which]))


def _by_blocks(x: Tensor, weight: Tensor, bias: Tensor | None, finish: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """(..., N), rounded from what ``finish`` makes of each block of the product in float32, and of where it stands."""
    wide, out = x.float(), x.new_empty(*x.shape[:-1], weight.shape[0])
    for start in range(0, weight.shape[0], BLOCK):
        which = slice(start, start + BLOCK)
        out[..., which] = finish(_product(wide, weight[which].float(), None if bias is None else bias[which].float()), which)
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if onednn.loses(x, weight) else onednn.linear(x, weight, bias)
