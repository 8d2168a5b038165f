"""Conditional UNets of diffusers (Stable Diffusion 1.x, 2.x, XL, LCM and relatives).

Every call has the original's signature, and every argument is handed on to the original's own forward: what is fused
are the parts inside, the memory format, and on CUDA the whole call as a graph. Nothing about the arguments is mirrored
here, so an argument that a later release adds cannot be dropped (FAULTS F70, F75).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import GenericPolicy
from .swap import Swap

if TYPE_CHECKING:
    from torch import nn


class UNetPolicy(GenericPolicy):
    """Replaces ``UNet2DConditionModel``, in place."""

    layer_classes = ("diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",)

    @classmethod
    def plan(cls, module: nn.Module, *, enable_cuda_graph: bool = True) -> Swap:
        from .fused.unet import unet_swap

        return unet_swap(module, cls, enable_graph=enable_cuda_graph)
