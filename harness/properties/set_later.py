"""Kinds of things that are set on a module once it has been replaced, each with how it is taken back."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from .hooks import scaled
from .weights import Scaled

Undo = Callable[[], object]
Change = Callable[[nn.Module], Undo]
"""Sets something on a module, of the original or of the replaced model, and returns how to take it back."""
Kind = Callable[[nn.Module], list[tuple[str, Change]]]
"""Changes of one kind that can be made to a module, each with its words."""
FUNCTIONS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""What is called and has no class of its own to inherit from."""
FREE_U = {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
"""Its factors, as they are recommended for Stable Diffusion 1."""
DROPPED = 0.5
"""The share of elements that a dropout takes where one is left on."""
PRUNED = 0.5
"""The share of a weight's elements that are pruned."""


def scaled_numbers(part: nn.Module) -> list[tuple[str, Change]]:
    return [(name, _to(name, value * 1.5 + 0.125)) for name, value in _set_on(part) if type(value) is float]


def other_counts(part: nn.Module) -> list[tuple[str, Change]]:
    """Numbers of heads, sizes: where the original can run with others, it computes something else."""
    return [
        (f"{name} = {count}", _to(name, count))
        for name, value in _set_on(part)
        if type(value) is int
        for count in (2 * value, value // 2, value + 1)
        if count != value
    ]


def other_configuration(part: nn.Module) -> list[tuple[str, Change]]:
    """What a part may read of its configuration when it is called. Whole numbers, from which rotary positions are computed anew
    and for good, are left alone."""
    found = [(name, value) for name, value in getattr(getattr(part, "config", None), "__dict__", {}).items() if name[0] != "_"]
    flags = [(name, not value) for name, value in found if type(value) is bool]
    numbers = [(name, 1.5 * value + 0.125) for name, value in found if type(value) is float]
    return [(f"config.{name} = {value}", _on_config(name, value)) for name, value in flags + numbers]


def _on_config(name: str, value: Any) -> Change:
    def change(part: nn.Module) -> Undo:
        return _to(name, value)(part.config)  # type: ignore[arg-type]

    return change


def other_implementation(part: nn.Module) -> list[tuple[str, Change]]:
    """The implementation of attention, of a whole model."""
    others = {"sdpa": "eager", "eager": "sdpa"}
    other = others.get(getattr(getattr(part, "config", None), "_attn_implementation", ""))
    if other is None or not hasattr(part, "set_attn_implementation"):
        return []
    return [(f"the attention's implementation {other}", _by_name(other))]


def _by_name(implementation: str) -> Change:
    def change(part: nn.Module) -> Undo:
        model: Any = part
        before = model.config._attn_implementation
        model.set_attn_implementation(implementation)
        return functools.partial(model.set_attn_implementation, before)

    return change


def flipped_flags(part: nn.Module) -> list[tuple[str, Change]]:
    return [(name, _to(name, not value)) for name, value in _set_on(part) if type(value) is bool]


def other_functions(part: nn.Module) -> list[tuple[str, Change]]:
    """What a part calls and is no part of its own: the processor of an attention, the activation of an MLP."""
    found = [(name, value) for name, value in vars(part).items() if not name.startswith("_") and callable(value)]
    others = [(f"another {name}", _to(name, _scaling(value))) for name, value in found if not isinstance(value, type)]
    objects = [(name, value) for name, value in found if not isinstance(value, FUNCTIONS)]
    return others + [(f"{name} of a subclass", _to(name, _of_a_subclass(value))) for name, value in objects]


def _scaling(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: scaled(function(*args, **kwargs))


def _of_a_subclass(function: Callable[..., Any]) -> Callable[..., Any]:
    """As somebody changes what a library's processor does: by a class that inherits from its own."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return scaled(function(*args, **kwargs))

    other = copy.copy(function)
    other.__class__ = type(type(function).__name__, (type(function),), {"__call__": call})
    return other


def own_method(part: nn.Module) -> list[tuple[str, Change]]:
    """A function of its class other than ``forward``, put on a part: a helper that somebody wraps."""
    kinds = [kind for kind in type(part).__mro__ if not kind.__module__.startswith("torch.")]
    names = {name for kind in kinds for name, one in vars(kind).items() if isinstance(one, types.FunctionType)}
    return [(f"a {name} of its own", _own(name)) for name in sorted(names) if name != "forward" and not name.startswith("__")]


def _own(name: str) -> Change:
    def change(part: nn.Module) -> Undo:
        setattr(part, name, _scaling(getattr(part, name)))
        return lambda: delattr(part, name)

    return change


def circular_padding(part: nn.Module) -> list[tuple[str, Change]]:
    """As images that tile are made."""
    return [("padding_mode", _to("padding_mode", "circular"))] if isinstance(part, nn.Conv2d) else []


def free_u(part: nn.Module) -> list[tuple[str, Change]]:
    """FreeU, whose factors stand on no block until somebody asks for it."""
    return [("FreeU", _with_free_u)] if hasattr(part, "enable_freeu") else []


def _with_free_u(part: Any) -> Undo:
    before = [{name: vars(block)[name] for name in FREE_U if name in vars(block)} for block in part.up_blocks]
    part.enable_freeu(**FREE_U)

    def undo() -> None:
        for block, values in zip(part.up_blocks, before, strict=True):
            for name in FREE_U:
                vars(block).pop(name)
            vars(block).update(values)

    return undo


def _set_on(part: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(part).items() if not name.startswith("_") and name != "training"]


def _to(name: str, value: Any) -> Change:
    def change(part: nn.Module) -> Undo:
        before = getattr(part, name)
        setattr(part, name, value)
        return lambda: setattr(part, name, before)

    return change


def another_class(part: nn.Module) -> list[tuple[str, Change]]:
    return [("the class", _of_another_class)]


def _of_another_class(part: nn.Module) -> Undo:
    """As this project replaces layers, and others cast or adapt them: a subclass of its own class, whose forward differs."""
    own = type(part)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return scaled(own.forward(self, *args, **kwargs))

    part.__class__ = type(f"Scaled{own.__name__}", (own,), {"forward": forward})

    def undo() -> None:
        part.__class__ = own

    return undo


def new_bias(part: nn.Module) -> list[tuple[str, Change]]:
    """Where a part has none, and takes one."""
    weight = part._parameters.get("weight")
    if weight is None or "bias" not in part._parameters or part.bias is not None:
        return []
    values = weight.detach().flatten(1).sum(1) if weight.dim() > 1 else 1 - weight.detach()
    return [("a bias", _to("bias", nn.Parameter(values)))]


class _Wrapped(nn.Module):
    """As adapters are put around a part: with a forward that adds to what it computes, and nothing else of what the part has."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return scaled(self.base(*args, **kwargs))


class _Adapted(_Wrapped):
    """With the part's weight, bias and what it has besides."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def an_adapter(part: nn.Module) -> list[tuple[str, Change]]:
    leaves = [name for name, child in part.named_children() if child._parameters and not child._modules]
    return [(f"an adapter around {name}", _around(name, _Adapted)) for name in leaves]


def a_wrapper(part: nn.Module) -> list[tuple[str, Change]]:
    return [(f"a module around {name}", _around(name, _Wrapped)) for name, _ in part.named_children()]


def _around(name: str, wrapper: type[_Wrapped]) -> Change:
    return lambda part: _to(name, wrapper(part.get_submodule(name)))(part)


def a_pruned_weight(part: nn.Module) -> list[tuple[str, Change]]:
    """A weight that a hook makes of a parameter and a mask before each call."""
    return [("a pruned weight", _pruned)] if part._parameters.get("weight") is not None else []


def _pruned(part: nn.Module) -> Undo:
    before = part.get_parameter("weight").detach().clone()
    prune.custom_from_mask(part, "weight", before.abs() > before.abs().quantile(PRUNED))

    def undo() -> None:
        prune.remove(part, "weight")
        with torch.no_grad():
            part.get_parameter("weight").copy_(before)

    return undo


def a_parametrization(part: nn.Module) -> list[tuple[str, Change]]:
    return [("a parametrization", _with_parametrization)] if part._parameters.get("weight") is not None else []


def _with_parametrization(part: nn.Module) -> Undo:
    parametrize.register_parametrization(part, "weight", Scaled())
    return lambda: parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)


def training_mode(part: nn.Module) -> list[tuple[str, Change]]:
    return [("training mode", _in_training)] if _shares_dropped(part) else []


def _shares_dropped(part: nn.Module) -> list[str]:
    """Names of the numbers on ``part`` that say how much it drops in training."""
    if isinstance(part, nn.Dropout):
        return ["p"]
    return [name for name, value in _set_on(part) if type(value) is float and "dropout" in name]


def _in_training(part: nn.Module) -> Undo:
    """As whoever samples from a model leaves its dropouts on."""
    undo = [_to(name, DROPPED)(part) for name in _shares_dropped(part)]
    part.train()

    def undo_all() -> None:
        part.eval()
        for one in undo:
            one()

    return undo_all
