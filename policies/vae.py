"""Variational autoencoders of diffusers (``AutoencoderKL``: Stable Diffusion 1.x, 2.x, XL).

``encode``, ``decode``, ``forward``, slicing, tiling and sampling stay the original's own methods; what is replaced is
the encoder and the decoder that all of them call, so none can be forgotten (FAULTS F76).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import GenericPolicy
from .swap import Swap

if TYPE_CHECKING:
    from torch import nn


class VAEPolicy(GenericPolicy):
    """Replaces ``AutoencoderKL``, in place."""

    layer_classes = ("diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",)

    @classmethod
    def plan(cls, module: nn.Module, *, enable_cuda_graph: bool = True) -> Swap:
        from .fused.vae import vae_swap

        return vae_swap(module, cls, enable_graph=enable_cuda_graph)
