"""Finding out, before anything is captured, whether a function can be.

A graph repeats device work and nothing else, so a function that draws random numbers, lets a tensor's value decide what
happens next, or writes to its inputs or weights would go wrong without a word. A trial run under a dispatch mode looks
at every operation before it is carried out and stops at the first of that kind; the call is then made eagerly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .capture import storage_id

_VALUE_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_HOST_READS = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.__array__: "numpy"}
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class NotRepeatable(BaseException):
    """Stops a trial run. The text is the reason."""


class TrialRun(TorchDispatchMode):
    """Carries out every operation that a graph can repeat and raises ``NotRepeatable`` at the first that it cannot.

    ``protected``: tensors (inputs, weights) that must not be written to.
    """

    def __init__(self, protected: list[Tensor]) -> None:
        super().__init__()
        self._protected = {storage_id(one) for one in protected}
        self._reads = HostReads()

    def __enter__(self) -> TrialRun:
        self._reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reason = self._why_not(func, args, kwargs)
        if reason is not None:
            raise NotRepeatable(reason)
        return func(*args, **kwargs)

    def _why_not(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if any(tag in func.tags for tag in _VALUE_TAGS):
            return f"values decide ({func})"
        if torch.Tag.nondeterministic_seeded in func.tags and _argument(func, args, kwargs, "dropout_p") != 0.0:
            return f"random numbers ({func})"
        if func in _INDEXING and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in tree_leaves(args[1])
        ):
            return f"values decide ({func} with a mask)"
        if func is torch.ops.aten._to_copy.default:
            target = kwargs.get("device")
            if target is not None and target.type != args[0].device.type:
                return f"a copy from {args[0].device.type} to {target.type}"
        if func._schema.is_mutable and any(storage_id(one) in self._protected for one in _written(func, args, kwargs)):
            return f"inputs or weights are written to ({func})"
        return None


class HostReads(TorchFunctionMode):
    """Stops at conversions that read a tensor's values past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HOST_READS:
            raise NotRepeatable(f"values decide ({_HOST_READS[func]})")
        return func(*args, **(kwargs or {}))


def _argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    for index, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[index] if index < len(args) else kwargs.get(name, argument.default_value)
    return None


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    written: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written += [one for one in tree_leaves(value) if isinstance(one, Tensor)]
    return written
