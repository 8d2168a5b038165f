"""oneDNN's linears as operators that ``torch.compile`` calls as they are.

Under torch's own name, ``mkldnn::_linear_pointwise``, the compiler takes them for its own, whose weight is a constant of the
graph. What has another name it calls, and optimises what is around. A program that is exported has public operators only, so
that others can load it.

Shapes: x (..., D), weight (N, D), bias (N,), residual and result (..., N).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

from ..anatomy import ActivationKind
from .activations import KERNELS
from .transforms import exporting

_PUBLIC = {
    ("gelu", "none"): KERNELS[ActivationKind.GELU],
    ("gelu", "tanh"): KERNELS[ActivationKind.GELU_TANH],
    ("swish", ""): KERNELS[ActivationKind.SILU],
}
_LIBRARY = torch.library.Library("replace_policy_harness", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias, str attribute, str algorithm) -> Tensor")
_LIBRARY.define("linear_add(Tensor x, Tensor weight, Tensor? bias, Tensor residual) -> Tensor")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    """The linear with the activation that oneDNN calls ``attribute`` and ``algorithm``; ``none`` for none."""
    if exporting():
        out = F.linear(x, weight, bias)
        return out if attribute == "none" else _PUBLIC[attribute, algorithm](out)
    fused: Tensor = torch.ops.replace_policy_harness.linear(x, weight, bias, attribute, algorithm)
    return fused


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """The linear plus ``residual``."""
    if exporting():
        return residual + F.linear(x, weight, bias)
    fused: Tensor = torch.ops.replace_policy_harness.linear_add(x, weight, bias, residual)
    return fused


@torch.library.impl(_LIBRARY, "linear", "CPU")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)
    return out


@torch.library.impl(_LIBRARY, "linear_add", "CPU")
def _linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return out


@torch.library.register_fake("replace_policy_harness::linear", lib=_LIBRARY)
@torch.library.register_fake("replace_policy_harness::linear_add", lib=_LIBRARY)
def _shape(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
