"""oneDNN's linear with post-operations, through torch's private ``mkldnn`` operators.

This is the one place that knows them. They are probed once, by running them; where they are missing or behave otherwise,
``available`` is False and the public path is taken. They read the layer's own weights, so nothing is packed, nothing kept
twice, and an update in place is seen by the next call.

Shapes: x (..., D), weight (N, D) with any strides, bias (N,), residual (..., N).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..anatomy import ActivationKind

DTYPES = frozenset({torch.float32, torch.bfloat16})
POST_OPERATIONS: dict[ActivationKind, tuple[str, str]] = {
    ActivationKind.GELU: ("gelu", "none"),
    ActivationKind.GELU_TANH: ("gelu", "tanh"),
    ActivationKind.RELU: ("relu", ""),
    ActivationKind.SILU: ("swish", ""),
}
"""Activation kinds that the linear can apply itself: operator attribute and algorithm."""


@functools.cache
def available() -> bool:
    """True where the operators exist and give what they should on a small example.

    The answer is kept, so it must not depend on who asks first: modes that change dtypes are off while it is found.
    """
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return _works(torch.ones(2, 3, dtype=torch.float32))


def _works(x: Tensor) -> bool:
    weight, bias = torch.full((4, 3), 0.25, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
    expected = F.linear(x, weight, bias)
    try:
        plain, summed = linear(x, weight, bias), add(x, weight, bias, expected)
        active = [activate(x, weight, bias, kind) for kind in POST_OPERATIONS]
    except (AttributeError, RuntimeError):
        return False
    positive = [F.gelu(expected), F.gelu(expected, approximate="tanh"), F.relu(expected), F.silu(expected)]
    pairs = zip([plain, summed, *active], [expected, 2 * expected, *positive], strict=True)
    return all(torch.allclose(mine, its, atol=1e-5) for mine, its in pairs)


def suits(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether this call may run here: plain CPU tensors of one dtype, nobody differentiating, casting or compiling.

    ``others`` are the call's bias and residual."""
    return (
        x.dtype in DTYPES
        and weight.dtype is x.dtype
        and not x.is_cuda
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, *others)))
        and not torch.is_autocast_enabled("cpu")
    )


def unfit(parameter: Tensor) -> Iterator[str]:
    """What keeps a layer with this parameter from ever running here, in a few words each."""
    if parameter.dtype not in DTYPES:
        yield f"in {str(parameter.dtype).removeprefix('torch.')}"
    if parameter.device.type not in ("cpu", "meta"):
        yield f"on {parameter.device.type}"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _operator()(x, weight, bias, "none", [], "")


def activate(x: Tensor, weight: Tensor, bias: Tensor | None, kind: ActivationKind) -> Tensor:
    """``kind`` (one of ``POST_OPERATIONS``) of the linear."""
    attribute, algorithm = POST_OPERATIONS[kind]
    return _operator()(x, weight, bias, attribute, [], algorithm)


def add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """The linear plus ``residual``, which is not changed."""
    return _operator().binary(x, residual, weight, bias, "add")


def _operator() -> Any:
    return torch.ops.mkldnn._linear_pointwise
