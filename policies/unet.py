"""Conditional UNets of diffusers (Stable Diffusion 1.x, 2.x, XL, LCM and relatives).

Every call has the original's signature, and every argument is handed on to the original's own forward: what is fused
are the parts inside, the memory format, and on CUDA the whole call as a graph. Nothing about the arguments is mirrored
here, so an argument that a later release adds cannot be dropped (FAULTS F70, F75).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import DSPolicy, Swap, UnsupportedLayer

if TYPE_CHECKING:
    from torch import nn


class UNetPolicy(DSPolicy):
    """Replaces ``UNet2DConditionModel``, in place."""

    layer_classes = ("diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",)

    @classmethod
    def plan(cls, module: nn.Module, *, enable_cuda_graph: bool = True) -> Swap:
        """``enable_cuda_graph`` captures calls on CUDA."""
        from .fused.unet import unet_swap

        return unet_swap(module, cls, enable_graph=enable_cuda_graph)

    @classmethod
    def match(cls, module: nn.Module) -> bool:
        """DeepSpeed's name for ``matches``."""
        return cls.matches(module)

    @classmethod
    def apply(cls, module: nn.Module, enable_cuda_graph: bool = True) -> nn.Module:
        """Replace ``module`` and return it: the same object. Raises ``UnsupportedLayer``. ``replace_module`` does the
        same and can take it back."""
        if not cls.matches(module):
            raise UnsupportedLayer("not a UNet2DConditionModel", layer=type(module).__name__)
        cls.plan(module, enable_cuda_graph=enable_cuda_graph).install()
        return module
