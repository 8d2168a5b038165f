"""Liger-Kernel: Triton kernels put into a model's parts. Written against liger-kernel 0.8; never run, for want of a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .changed import Changed, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    given: Any = model
    _apply_liger_kernel_to_instance(model=given)
    return as_a_whole(model, "Liger-Kernel")
