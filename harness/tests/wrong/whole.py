"""Replacements of whole diffusion models that their callers take for the original, and that are not quite."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]


def calling(change: Callable[[Callable[..., Any], Call], Any]) -> Callable[[nn.Module], None]:
    """An edit by which a replaced UNet answers ``change(its own forward, arguments by name)``."""

    def edit(model: nn.Module) -> None:
        before: Any = type(model)
        names = list(inspect.signature(model.forward).parameters)

        @functools.wraps(before.forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return change(functools.partial(before.forward, self), {**dict(zip(names, args, strict=False)), **kwargs})

        on_top(model, forward=forward)

    return edit


def on_top(model: nn.Module, **functions: Any) -> None:
    """Put a class with ``functions`` on top of the replaced model's."""
    before = type(model)
    model.__class__ = type(before.__name__, (before,), functions)


def with_sample(result: Any, sample: Tensor) -> Any:
    """The same kind of result with another image."""
    return (sample,) if isinstance(result, tuple) else type(result)(sample=sample)


def always_an_object(own: Callable[..., Any], call: Call) -> Any:
    return own(**{**call, "return_dict": True})


def channels_last(own: Callable[..., Any], call: Call) -> Any:
    result = own(**call)
    return with_sample(result, result[0].contiguous(memory_format=torch.channels_last))


def takes_no_generator(model: nn.Module) -> None:
    before: Any = type(model)

    def decode(self: Any, z: Tensor, return_dict: bool = True) -> Any:
        return before.decode(self, z, return_dict=return_dict)

    on_top(model, decode=decode)


def deaf_itself(model: nn.Module) -> None:
    """Calls its forward, whatever hooks it has."""
    on_top(model, __call__=lambda self, *args, **kwargs: self.forward(*args, **kwargs))


def passes_over_a_forward_of_its_own(model: nn.Module) -> None:
    on_top(model, __call__=lambda self, *args, **kwargs: type(self).forward(self, *args, **kwargs))


def names_its_first_dtype(model: Any) -> None:
    first = model.dtype
    on_top(model, dtype=property(lambda self: first))
