"""The fused VAE: encoder and decoder over fused parts, in channels_last, each behind a graph on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .boundary import coder_keeps_channels_last, original_gives_channels_last, with_gradient_as_it_lies
from .capture import backend
from .diffusion import PARTS, DiffusionSwap, FusedRoot
from .swapped import Swapped
from .transforms import compiling, not_plain

if TYPE_CHECKING:
    from ..base import DSPolicy


class FusedVAE(FusedRoot):
    """Mixin before ``AutoencoderKL``: its methods stay its own."""


class FusedCoder(Swapped):
    """Mixin before diffusers' ``Encoder`` and ``Decoder``: images (B, C, Y, X) to latents and back."""

    def forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        state = self._fused_state
        if sample.dim() != 4:
            outside: Tensor = super().forward(sample, *args, **kwargs)
            return outside
        if compiling():
            return self._fused_as_given(sample, sample, *args, **kwargs)
        strange = not_plain(sample)
        if strange is not None:
            state.fallbacks[strange] += 1
            return self._fused_as_given(sample, sample, *args, **kwargs)
        sample = with_gradient_as_it_lies(sample)
        if self.training:
            if not state.detached:
                state.refresh()
            state.fallbacks["training mode"] += 1
            return self._fused_as_given(sample, sample, *args, **kwargs)
        alone = state.detached or getattr(state.root, self._fused_role, None) is not self
        run = self._fused_forward if alone else state.graph(self._fused_role, self, self._fused_forward, sample)
        result: Tensor = run(sample, *args, **kwargs)
        state.calls += 1
        return result

    def _fused_forward(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The original's, in channels_last."""
        return self._fused_as_given(sample, sample.contiguous(memory_format=torch.channels_last), *args, **kwargs)

    def _fused_as_given(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The original's, with a result in the memory format that the original gives for ``sample``: weights are in another."""
        result: Tensor = super().forward(*args, **kwargs)
        channels_last = original_gives_channels_last(self, sample, coder_keeps_channels_last)
        return result if channels_last else result.contiguous()

    @property
    def _fused_role(self) -> str:
        """The VAE's for it, whether or not it is still there."""
        return self._fused_original.__name__.lower()


CODERS: dict[str, type[Swapped]] = {
    "diffusers.models.autoencoders.vae:Encoder": FusedCoder,
    "diffusers.models.autoencoders.vae:Decoder": FusedCoder,
}


def vae_swap(module: nn.Module, policy: type[DSPolicy], *, enable_graph: bool) -> DiffusionSwap:
    chosen = backend() if enable_graph else None
    return DiffusionSwap(module, policy, mixin=FusedVAE, parts={**PARTS, **CODERS}, backend=chosen)
