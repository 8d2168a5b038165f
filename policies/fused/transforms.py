"""Calls that are not of plain numbers: under torch.func's transforms, in forward mode, of tensors of another class, traced.

An operator that has no rule for them does not always say so: oneDNN's linears pass a value on and lose its tangent. What is
derived from fake tensors is of no use afterwards. TorchScript has no words for the arguments of oneDNN's linears. The original
is made of operators that have the rules, or raise, so such a call is the original's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

TRANSFORM = "a function transform"
TRACE = "a trace for TorchScript"
_innermost = torch._C._functorch.peek_interpreter_stack
_tracing_state = torch._C._get_tracing_state
_mode = torch._C._get_dispatch_mode
_KEYS = torch._C._TorchDispatchModeKey
_OF_EXPORTERS = (_KEYS.FAKE, _KEYS.PROXY, _KEYS.FUNCTIONAL)


def compiling() -> bool:
    """Whether this call is traced by a compiler, or exported. ``torch.compiler.is_compiling()`` is true of every thread's calls
    for as long as one of them compiles."""
    return torch.compiler.is_dynamo_compiling() or exporting()


def exporting() -> bool:
    """Whether this call is exported. ``torch.compiler.is_exporting()`` is true of every thread's calls, too; the exporter's are
    compiled, or made inside the modes of its thread that take the place of values."""
    return torch.compiler.is_exporting() and (torch.compiler.is_dynamo_compiling() or any(map(_mode, _OF_EXPORTERS)))


def settled(size: int, otherwise: int) -> int:
    """``size``, or where a compiler leaves it open ``otherwise``. A choice by an open size would split what is compiled, and an
    exporter would refuse the sizes beyond it."""
    if not compiling():
        return size
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes a while, and is there where there is a compiler

    return size if has_static_value(size) else otherwise


def tracing() -> bool:
    """Whether ``torch.jit.trace`` (or ONNX's exporter, by way of it) is watching."""
    return _tracing_state() is not None


def transforming() -> bool:
    """Whether this call is made under ``torch.func`` (``jvp``, ``grad``, ``vmap`` ...), with dual tensors alive, or traced. A
    compiler asks what it traced by itself."""
    if compiling():
        return False
    return forward_ad._current_level >= 0 or _innermost() is not None or tracing()


def not_plain(hidden: object) -> str | None:
    """Why a call with ``hidden`` is the original's, or None."""
    if compiling():
        return None
    if transforming():
        return TRACE if tracing() else TRANSFORM
    if isinstance(hidden, Tensor) and type(hidden) not in (Tensor, nn.Parameter):
        return f"tensors of class {type(hidden).__name__}"
    return None


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """What runs inside is about plain numbers, whatever is being traced, transformed or counted around it."""
    with torch._C._DisableFuncTorch(), _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is made inside outlives the call: no inference tensors, and nothing that is held by a graph of gradients.

    ``inference_mode(False)`` turns gradients on by the way, and off again where nobody sees it. An exporter sees the ends of
    ``no_grad`` alone, and would leave them on for the rest of its program; so there is one around it too. And it would write
    both into the program, which could then be saved, and not be loaded; so it is not told of them.
    """
    unseen = torch._C.DisableTorchFunction() if exporting() else contextlib.nullcontext()
    with unseen, torch.no_grad(), torch.inference_mode(False), torch.no_grad():
        yield
