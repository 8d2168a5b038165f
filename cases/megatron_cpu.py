"""megatron-core without a GPU and without process groups: what stands in for them, and its import without its noise.

Everything that a layer of the local spec computes is megatron-core's own. Stood in for are the current device, the
scratch buffer and the random state that it keeps on a GPU, and the groups that one process has nobody to share with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest import mock

import torch

_GROUP_FALLBACK = "get_tensor_model_parallel_group_if_none"
_USES_GROUPS = ("tensor_parallel.layers", "tensor_parallel.mappings", "transformer.mlp")


@cache
def core(path: str) -> ModuleType:
    """``megatron.core.<path>``, imported without its warnings and without handing functions to ``torch.compile``.

    It decorates a dozen small functions so while it is imported; each would take seconds to compile at its first call.
    """
    compiler = torch.compile

    def leave_alone(function: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        if function is not None and function.__module__.startswith("megatron."):
            return function
        return compiler(function, **kwargs)

    with warnings.catch_warnings(), mock.patch.object(torch, "compile", leave_alone):
        # Apex and Transformer Engine are missing, parts of it use other parts that are deprecated (0.16.1).
        warnings.simplefilter("ignore")
        return import_module(f"megatron.core.{path}")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """megatron-core warns of its own defaults while it builds a layer (0.16.1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class OneProcess:
    """A process group of which this process is all."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


class _RandomStates:
    """Keeps no states: dropout, which they are for, is off in evaluation."""

    def fork(self, name: str = "") -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _TorchWithoutCuda:
    """``torch`` as seen by a module that makes its masks on ``cuda``: here that means the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def ones(self, *size: int, device: str, **kwargs: Any) -> torch.Tensor:
        return torch.ones(*size, **kwargs)


@cache
def process_groups() -> Any:
    """Every group that a layer may ask for, each of one process."""
    groups = core("process_groups_config").ProcessGroupCollection()
    for field in dataclasses.fields(groups):
        setattr(groups, field.name, OneProcess())
    return groups


@contextlib.contextmanager
def megatron_alone(device: str = "cpu") -> Iterator[None]:
    """Inside, layers of megatron-core's local spec can be built, on the CPU, and called on ``device``. May be entered inside
    itself."""
    without_gpu = [
        (torch.cuda, "current_device", lambda: "cpu"),
        (core("transformer.utils"), "torch", _TorchWithoutCuda()),
    ]
    stand_ins = [
        *(() if device == "cuda" else without_gpu),
        (core("parallel_state"), "_GLOBAL_MEMORY_BUFFER", core("utils").GlobalMemoryBuffer()),
        (core("tensor_parallel"), "get_cuda_rng_tracker", lambda *_: _RandomStates()),
        *((core(path), _GROUP_FALLBACK, lambda group, **_: group) for path in _USES_GROUPS),
    ]
    real = [(owner, name, getattr(owner, name)) for owner, name, _ in stand_ins]
    try:
        for owner, name, value in stand_ins:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in real:
            setattr(owner, name, value)
