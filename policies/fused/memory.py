"""Where a parameter's values lie in memory, whether they may lie elsewhere, and who else holds that memory.

What is held by others has to stay where it is: they write to it (a flat vector of all parameters, as distributed optimisers
have; a state_dict; another process), and that must reach the layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

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


def alone(tensors: Iterable[Tensor], ours: Iterable[Tensor] = ()) -> bool:
    """True where nobody but ``tensors`` themselves, and ``ours``, holds their memory: no tensor, array, graph of gradients or
    TorchScript module.

    torch counts the holders of a storage, but shows the count to nobody in public; asking makes one more. Of a tensor itself
    recent releases show it. A storage object is not counted: it is one for all who ask.
    """
    tensors = tuple(tensors)
    different = {id(one): one for one in (*tensors, *ours)}.values()
    holders = Counter(one.untyped_storage()._cdata for one in different)
    return all(
        getattr(one, "_use_count", lambda: 1)() == 1
        and torch._C._storage_Use_Count(storage._cdata) <= holders[storage._cdata] + 1
        for one in tensors
        for storage in (one.untyped_storage(),)
    )


def in_strides(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``values`` alone in a storage, with ``strides``, bit for bit."""
    if values.stride() == strides and values.untyped_storage().nbytes() == values.nbytes:
        return values
    return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=values.device).copy_(values)
