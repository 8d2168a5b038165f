"""Which norm a module computes, found by holding formulas against what it returned.

A class called RMSNorm may centre its gains at zero, keep eps under any name, or round after the gain; its name tells
none of it. Shapes: values (..., D), gains (D,).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from policies.anatomy import NormKind
from policies.structure import RMS_NORMS
from policies.swap import qualified_name

from .parts import Passed

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "norm_eps")
_EPS_VALUES = (1e-5, 1e-6, 1e-12, 1e-8)
"""What classes that keep no eps have in their code."""
_PLAIN = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class NormFound:
    """A norm at ``path``. ``plain``: ``Structure.norm`` reads it by itself. ``eps`` is an attribute's name, or the
    value where there is none. ``problem``: why no formula fits."""

    path: str
    cls: str
    plain: bool = False
    kind: NormKind = NormKind.RMS
    eps: str | float = ""
    gain_offset: float = 0.0
    rounds_last: bool = False
    problem: str = ""


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` goes by the name of a norm."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def norm_found(path: str, part: Passed) -> NormFound:
    """Say which norm ``part`` is, from what it was given and returned in float64."""
    module: Any = part.module
    cls = qualified_name(type(module))
    if type(module) in _PLAIN or cls in RMS_NORMS:
        return NormFound(path=path, cls=cls, plain=True)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is not None and weight.dim() != 1:
        return NormFound(path=path, cls=cls, problem=f"the gains of {type(module).__name__} have another for each head")
    for eps in [name for name in _EPS_NAMES if isinstance(getattr(module, name, None), float)] or _EPS_VALUES:
        value = getattr(module, eps) if isinstance(eps, str) else eps
        for kind, offset in product(NormKind, (0.0, 1.0) if weight is not None else (0.0,)):
            gain = None if weight is None else weight + offset
            if _fits(part, kind, gain, bias, value):
                last = kind is NormKind.RMS and weight is not None and _rounds_last(module, offset, value)
                return NormFound(path=path, cls=cls, kind=kind, eps=eps, gain_offset=offset, rounds_last=last)
    return NormFound(path=path, cls=cls, problem=f"{type(module).__name__} is neither a LayerNorm nor an RMS norm")


def _fits(part: Passed, kind: NormKind, gain: Tensor | None, bias: Tensor | None, eps: float) -> bool:
    x = part.given
    if gain is not None and gain.shape != x.shape[-1:]:
        return False
    if kind is NormKind.LAYER:
        expected = F.layer_norm(x, x.shape[-1:], gain, bias, eps)
    else:
        expected = F.rms_norm(x, x.shape[-1:], gain, eps)
    return expected.shape == part.returned.shape and torch.allclose(expected, part.returned, rtol=1e-9, atol=1e-12)


def _rounds_last(module: Any, offset: float, eps: float) -> bool:
    """Whether the product with the gain is rounded after it, as seen in bfloat16."""
    import copy

    narrow = copy.deepcopy(module).to(torch.bfloat16)
    x = torch.randn(64, narrow.weight.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    x = x.to(torch.bfloat16)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    first = (narrow.weight + offset) * wide.to(torch.bfloat16)
    last = ((narrow.weight.float() + offset) * wide).to(torch.bfloat16)
    with torch.no_grad():
        returned = narrow(x)
    return int((returned != last).sum()) < int((returned != first).sum())
