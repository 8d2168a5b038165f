"""Where a parameter's values lie in memory, whether they may lie elsewhere, and who else holds that memory.

What is held by others has to stay where it is: they write to it (a flat vector of all parameters, as distributed optimisers
have; a state_dict; another process), and that must reach the layer.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .transforms import plainly


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

    torch counts the holders of a storage, but shows the count to nobody in public. Of a tensor itself recent releases show it.
    A storage object is not counted: it is one for all who ask.
    """
    tensors = tuple(tensors)
    different = {id(one): one for one in (*tensors, *ours)}.values()
    holders = Counter(one.untyped_storage()._cdata for one in different)
    of_tensor, of_storage = _counts_of_a_new_tensor()
    return all(
        _use_count(one) == of_tensor and torch._C._storage_Use_Count(storage._cdata) < holders[storage._cdata] + of_storage
        for one in tensors
        for storage in (one.untyped_storage(),)
    )


@functools.cache
def _counts_of_a_new_tensor() -> tuple[int, int]:
    """How many holders a tensor and its storage are said to have where it is the only one; whoever asks may be counted."""
    with plainly():
        one = torch.empty(1)
        return _use_count(one), torch._C._storage_Use_Count(one.untyped_storage()._cdata)


def _use_count(tensor: Tensor) -> int:
    return int(getattr(tensor, "_use_count", int)())


def in_strides(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``values`` alone in a storage, with ``strides``, bit for bit. Raises ValueError where two values would lie in one place."""
    if values.stride() == strides and values.untyped_storage().nbytes() == values.nbytes:
        return values
    if overlap(values.shape, strides):
        raise ValueError(f"a tensor of {tuple(values.shape)} cannot have strides {strides}: values would overlap")
    return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=values.device).copy_(values)


def lay_out(parameter: Tensor, strides: tuple[int, ...]) -> None:
    """Give ``parameter`` ``strides``, its values bit for bit, and its gradient too, where that lies as it does and is nobody
    else's. Raises ValueError where two values would lie in one place."""
    before = parameter.stride()
    parameter.data = in_strides(parameter.data, strides)
    gradient, parameter.grad = parameter.grad, None  # a parameter is one more who holds it
    if gradient is not None and gradient.stride() == before and alone((gradient,)):
        gradient.data = in_strides(gradient.data, strides)
    parameter.grad = gradient


def overlap(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements may lie on each other: whether a dimension's step is no longer than all that lies within it."""
    if 0 in shape:
        return False
    reached = 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride <= reached:
            return True
        reached += stride * (size - 1)
    return False
