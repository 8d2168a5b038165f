"""Variational autoencoders of diffusers (``AutoencoderKL``: Stable Diffusion 1.x, 2.x, XL).

``encode``, ``decode``, ``forward``, slicing, tiling and sampling stay the original's own methods; what is replaced is
the encoder and the decoder that all of them call, so none can be forgotten (FAULTS F76).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import DSPolicy, Swap, UnsupportedLayer

if TYPE_CHECKING:
    from torch import nn


class VAEPolicy(DSPolicy):
    """Replaces ``AutoencoderKL``, in place."""

    layer_classes = ("diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",)

    @classmethod
    def plan(cls, module: nn.Module, *, enable_cuda_graph: bool = True) -> Swap:
        """``enable_cuda_graph`` captures calls on CUDA."""
        from .fused.vae import vae_swap

        return vae_swap(module, cls, enable_graph=enable_cuda_graph)

    @classmethod
    def match(cls, module: nn.Module) -> bool:
        """DeepSpeed's name for ``matches``."""
        return cls.matches(module)

    @classmethod
    def apply(cls, module: nn.Module, enable_cuda_graph: bool = True) -> nn.Module:
        """Replace ``module`` and return it: the same object. Raises ``UnsupportedLayer``. ``replace_module`` does the
        same and can take it back."""
        if not cls.matches(module):
            raise UnsupportedLayer("not an AutoencoderKL", layer=type(module).__name__)
        cls.plan(module, enable_cuda_graph=enable_cuda_graph).install()
        return module
