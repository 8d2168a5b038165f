"""oneDNN's linears as operators that ``torch.compile`` calls as they are.

Under torch's own name, ``mkldnn::_linear_pointwise``, the compiler takes them for its own, whose weight is a constant of the
graph. What has another name it calls, and optimises what is around.

Shapes: x (..., D), weight (N, D), bias (N,), residual and result (..., N).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("replace_policy_harness", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias, str attribute, str algorithm) -> Tensor")
_LIBRARY.define("linear_add(Tensor x, Tensor weight, Tensor? bias, Tensor residual) -> Tensor")

linear = torch.ops.replace_policy_harness.linear
linear_add = torch.ops.replace_policy_harness.linear_add


@torch.library.impl(_LIBRARY, "linear", "CPU")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)
    return out


@torch.library.impl(_LIBRARY, "linear_add", "CPU")
def _linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return out


@torch.library.register_fake("replace_policy_harness::linear", lib=_LIBRARY)
def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("replace_policy_harness::linear_add", lib=_LIBRARY)
def _linear_add_shape(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
