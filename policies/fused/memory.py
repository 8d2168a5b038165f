"""Where a parameter's values lie in memory, and whether they may lie elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def may_move(parameter: Tensor) -> bool:
    """Whether ``parameter`` may be given other memory: a plain one, whose memory is of this process alone. What other
    processes read and write (``Module.share_memory``) has to stay where it is."""
    return (
        type(parameter) is nn.Parameter
        and not parameter.is_inference()
        and not (parameter.device.type == "cpu" and parameter.is_shared())
    )


def in_strides(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``values`` alone in a storage, with ``strides``, bit for bit."""
    if values.stride() == strides and values.untyped_storage().nbytes() == values.nbytes:
        return values
    return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=values.device).copy_(values)
