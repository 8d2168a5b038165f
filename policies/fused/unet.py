"""The fused UNet: the original's forward over fused parts, in channels_last, behind a graph on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .boundary import original_gives_channels_last, unet_keeps_channels_last, with_gradient_as_it_lies
from .capture import backend
from .diffusion import DiffusionSwap, FusedRoot
from .transforms import compiling, not_plain

if TYPE_CHECKING:
    from ..base import DSPolicy


class FusedUNet(FusedRoot):
    """Mixin before ``UNet2DConditionModel``. Shapes: sample (B, C, Y, X), timestep a number, () or (B,)."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        sample = args[0] if args else kwargs.get("sample")
        if not isinstance(sample, Tensor) or sample.dim() != 4:
            return super().forward(*args, **kwargs)
        if compiling():
            return self._fused_as_given(sample, args, kwargs)
        state = self.fused
        strange = not_plain(sample)
        if strange is not None:
            state.fallbacks[strange] += 1
            return self._fused_as_given(sample, args, kwargs)
        args, kwargs = _with(args, kwargs, 0, "sample", with_gradient_as_it_lies(sample))
        if self.training:
            state.refresh()
            state.fallbacks["training mode"] += 1
            return self._fused_as_given(sample, args, kwargs)
        eagerly = self._fused_forward
        run = state.graph("forward", self, eagerly, sample)
        if run is not eagerly:
            args, kwargs = _timestep_as_tensor(args, kwargs, sample.device)
        result = run(*args, **kwargs)
        state.calls += 1
        return result

    def _fused_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's, in channels_last."""
        sample = args[0] if args else kwargs["sample"]
        return self._fused_as_given(
            sample, *_with(args, kwargs, 0, "sample", sample.contiguous(memory_format=torch.channels_last))
        )

    def _fused_as_given(self, sample: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The original's, with a result in the memory format that the original gives for ``sample``: weights are in another."""
        result = super().forward(*args, **kwargs)
        return _with_sample(result, original_gives_channels_last(self, sample, unet_keeps_channels_last))


def unet_swap(module: nn.Module, policy: type[DSPolicy], *, enable_graph: bool) -> DiffusionSwap:
    return DiffusionSwap(module, policy, mixin=FusedUNet, backend=backend() if enable_graph else None)


def _with(
    args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with another value for one argument, given the way it was given."""
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


def _timestep_as_tensor(
    args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The original makes a tensor of a numeric timestep; doing it outside the graph spares a capture a step, and a copy
    from the host that no graph may hold. Dtypes are the original's."""
    timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
    if type(timestep) in (int, float):
        dtype = torch.float64 if isinstance(timestep, float) else torch.int64
        return _with(args, kwargs, 1, "timestep", torch.tensor([timestep], dtype=dtype, device=device))
    if isinstance(timestep, Tensor) and timestep.dim() == 0:
        return _with(args, kwargs, 1, "timestep", timestep[None].to(device))
    return args, kwargs


def _with_sample(result: Any, channels_last: bool) -> Any:
    """The same kind of result with its image in the original's memory format."""
    if channels_last:
        return result
    if isinstance(result, tuple):
        return (result[0].contiguous(), *result[1:])
    return type(result)(sample=result.sample.contiguous())
