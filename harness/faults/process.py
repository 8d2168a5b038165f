"""Faults that reach beyond the model: what all models of a process share, the original among them, is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn
from torch.nn import functional

from ..trial import Handle, Replacer
from .fault import Inject, misreplacing

_ATTENTION = "scaled_dot_product_attention"


def _besides(act: Callable[[], object]) -> Inject:
    """Something is done to the process with each replacement. Afterwards it is as it was."""

    @contextlib.contextmanager
    def inject(replacer: Replacer) -> Iterator[Replacer]:
        dtype, precision, gradients = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()

        def wrong(model: nn.Module) -> Handle:
            act()
            return replacer(model)

        with mock.patch.object(functional, _ATTENTION, getattr(functional, _ATTENTION)):
            try:
                yield wrong
            finally:
                torch.set_default_dtype(dtype)
                torch.set_float32_matmul_precision(precision)
                torch.set_grad_enabled(gradients)

    return inject


def _put_in_attention() -> None:
    """A function of one's own, be it as right as torch's."""
    own = getattr(functional, _ATTENTION)
    setattr(functional, _ATTENTION, lambda *args, **kwargs: own(*args, **kwargs))


PROCESS = (
    misreplacing(
        "F63 code",
        "F63",
        "Liger-Kernel #242, trl PR #3680",
        "The replacement's functions are put where the library keeps its own, and the original computes with them too.",
        _besides(_put_in_attention),
    ),
    misreplacing(
        "F63 precision",
        "F63",
        "torchmd-net PR #327",
        "Replacing lowers the precision of products for the whole process.",
        _besides(lambda: torch.set_float32_matmul_precision("medium")),
    ),
    misreplacing(
        "F63 dtype",
        "F63",
        "vllm PR #971",
        "Replacing sets the default dtype for the whole process.",
        _besides(lambda: torch.set_default_dtype(torch.float16)),
        expects=("hands off",),
    ),
    misreplacing(
        "F63 gradients",
        "F63",
        "deepinv #166, transformers PR #13257",
        "Replacing turns gradients off and not on again.",
        _besides(lambda: torch.set_grad_enabled(False)),
    ),
)
"""Changes to what is shared."""
