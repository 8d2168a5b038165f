"""torch.func's transforms, and differentiation in forward mode.

An operator that has no rule for them does not always say so: oneDNN's linears pass a value on and lose its tangent. The
original is made of operators that have the rules, or raise, so such a call is the original's.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

REASON = "a function transform"
_innermost = torch._C._functorch.peek_interpreter_stack


def transforming() -> bool:
    """Whether this call is made under ``torch.func`` (``jvp``, ``grad``, ``vmap`` ...) or with dual tensors alive. A compiler
    asks what it traced by itself."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or _innermost() is not None
