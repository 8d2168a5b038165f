"""Hooks, and forwards put on an instance, that see less or something else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

from policies import replace_module
from policies.replace import Replacement

from ..tiny import Forward, cache_of


def deaf(where: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    """A change by which calls with such a hidden state and cache are a kernel's that calls no module."""

    def change(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if not where(hidden, cache_of(kwargs)):
            return own(hidden, *args, **kwargs)
        with without_hooks(state["layer"], "_forward_hooks", "_forward_pre_hooks"):
            return own(hidden, *args, **kwargs)

    return change


def deaf_backwards(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    with without_hooks(state["layer"], "_backward_hooks"):
        return own(*args, **kwargs)


@contextlib.contextmanager
def without_hooks(layer: nn.Module, *kinds: str) -> Iterator[None]:
    hooks = [getattr(one, kind) for one in layer.modules() for kind in kinds]
    kept = [dict(one) for one in hooks]
    for one in hooks:
        one.clear()
    try:
        yield
    finally:
        for one, before in zip(hooks, kept, strict=True):
            one.update(before)


def hooked(forward: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A change by which an MLP that has hooks inside is run by ``forward(mlp, x)``."""

    def change(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mlp = state["layer"].mlp
        if not any(one._forward_hooks for one in mlp.modules()):
            return own(*args, **kwargs)
        kind = type(mlp)
        mlp.__class__ = type(kind.__name__, (kind,), {"forward": forward})
        try:
            return own(*args, **kwargs)
        finally:
            mlp.__class__ = kind

    return change


def by_rows(mlp: Any, x: Any) -> Any:
    return LlamaMLP.forward(mlp, x.flatten(0, 1)).view(x.shape)


def in_place(mlp: Any, x: Any) -> Any:
    return LlamaMLP.forward(mlp, x).mul_(2) / 2


def unpatching(model: nn.Module) -> Replacement:
    """Puts its own forward where somebody has put one before."""
    for one in model.modules():
        vars(one).pop("forward", None)
    return replace_module(model)
