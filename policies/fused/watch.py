"""Noticing that a layer is no longer the one a replacement was derived from.

This runs at every call, so it compares identities and storage addresses only; it never looks at a tensor's values (an update
in place is seen by itself, because a replacement holds the layer's own tensors). One token at a time, with a model's weights
streaming through the caches between two calls of a layer, each object that is looked at is a miss: it is as few as will do.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..structure import patched
from .packed import PackedParameter
from .transforms import compiling


class Watch:
    """Remembers every submodule and parameter of a layer, its attention implementation, and where in memory its
    parameters are: all, or those of ``placed`` where the replacement depends on no other's place."""

    def __init__(self, layer: nn.Module, placed: Iterable[Tensor] | None = None) -> None:
        self.modules = [module for module in layer.modules() if module is not layer]
        every = (layer, *self.modules)
        self._owners: list[dict[str, Any]] = [own for one in every for own in (one._modules, one._parameters) if own]
        self._sizes = [len(own) for own in self._owners]
        self._members = [member for own in self._owners for member in own.values()]
        watched = layer.parameters() if placed is None else placed
        self._placed = tuple(watched)
        self._at = self._addresses()
        self._configured = [module for module in self.modules if hasattr(module, "config")]
        self._configurations = [module.config for module in self._configured]
        self._config = next(iter(self._configurations), None)
        self._settings: dict[str, Any] = {} if self._config is None else vars(self._config)
        self._implementation = self._asked_for()

    def stale(self) -> bool:
        """True where a submodule or parameter was exchanged, or a parameter has another storage."""
        if self.exchanged():
            return True
        return self._addresses() != self._at

    def _addresses(self) -> list[int | None]:
        """Where parameters' values are, None where they are packed."""
        return [None if type(one) is PackedParameter else one.data_ptr() for one in self._placed]

    def exchanged(self) -> bool:
        """True where a submodule, parameter or configuration is another object. This much a compiler can trace, and guards on."""
        members = chain.from_iterable([own.values() for own in self._owners])
        return (
            [*map(len, self._owners)] != self._sizes
            or not all(map(is_, members, self._members))
            or not all(map(is_, [module.config for module in self._configured], self._configurations))
            or self._asked_for() != self._implementation
        )

    def same_modules(self, layer: nn.Module) -> bool:
        """True where no submodule was exchanged, nor the attention implementation."""
        now = [module for module in layer.modules() if module is not layer]
        same = len(now) == len(self.modules) and all(map(is_, now, self.modules))
        return same and bool(self._asked_for() == self._implementation)

    def _asked_for(self) -> Any:
        """The attention implementation that the configuration names. To ask it costs as much as all else here together:
        where it keeps the answer under the name that transformers has for it, that is read."""
        if _KEPT in self._settings:
            return self._settings[_KEPT]
        return getattr(self._config, "_attn_implementation", None)


_KEPT = "_attn_implementation_internal"


class Settings:
    """Remembers what is set on a layer and on the modules inside it (a norm's epsilon, a scale, a flag), and their classes;
    of layers that are ``configured`` (``CallConvention``) also their configurations and all that is set there.

    Not the layer itself, in which it is kept.
    """

    def __init__(self, layer: nn.Module, modules: list[nn.Module], *, configured: bool) -> None:
        self._modules = modules
        self._classes = [*map(type, modules)]
        self._own = _settings_of(layer)
        self._inner = [(module, name) for module in modules for name in _settings_of(module)]
        self._configured = [one for one in modules if configured and hasattr(getattr(one, "config", None), "__dict__")]
        of_each = {id(module.config): module for module in self._configured}.values()
        self._fields = [(module, _plain_in(module.config)) for module in of_each]
        self._set_to = self._now(layer)
        self._sizes = self._how_much(layer)

    def changed(self, layer: nn.Module) -> bool:
        """True where anything is set to another value, or a module is of another class. A compiler can trace it, but for how much
        is set: a function of a module's own, in the place of its class's, is one more."""
        if [*map(type, self._modules)] != self._classes or (not compiling() and self._how_much(layer) != self._sizes):
            return True
        now = self._now(layer)
        return not (all(map(is_, now, self._set_to)) or all(map(_same, now, self._set_to)))

    def _how_much(self, layer: nn.Module) -> list[int]:
        """How much is set on the layer, but for what is derived from it and kept in it, and on each module inside."""
        own = vars(layer)
        return [len(own) - ("_fused_state" in own), *(len(vars(one)) for one in self._modules)]

    def _now(self, layer: nn.Module) -> list[Any]:
        own = [getattr(layer, name, None) for name in self._own]
        inner = [getattr(module, name, None) for module, name in self._inner]
        found = [(vars(module.config), names) for module, names in self._fields]
        fields = [values.get(name) for values, names in found for name in names]
        return own + inner + fields + [len(values) for values, _ in found]


def _same(now: Any, before: Any) -> bool:
    """What a compiler of dynamic shapes traces is no number's identity, but its value; of a partial function none traces it."""
    if type(now) is functools.partial and type(before) is functools.partial:
        return bool(now.func is before.func and now.args == before.args and now.keywords == before.keywords)
    return now is before or (type(now) is type(before) and bool(now == before))


_PLAIN = (bool, int, float, str, type(None))
_UNREAD = (nn.Linear, nn.Dropout)
"""Modules that compute with none of their settings, in eval mode."""


def _settings_of(module: nn.Module) -> list[str]:
    """Names of what was set on ``module`` besides what every module has: numbers, flags, functions."""
    if type(module) in _UNREAD:
        return []
    return [name for name in _plain_in(module) if not name.startswith("_") and name not in ("training", "forward")]


def _plain_in(holder: Any) -> list[str]:
    return [name for name, value in vars(holder).items() if type(value) in _PLAIN or callable(value)]


def _backward_hooks(modules: list[nn.Module]) -> str | None:
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        return "a backward hook on all modules"
    for module in modules:
        if module._backward_hooks or module._backward_pre_hooks:
            return f"a backward hook on {type(module).__name__}"
    return None


def inner_hooks(modules: list[nn.Module]) -> str | None:
    """Why hooks on inner modules keep the fused path from running, or None.

    A fused layer does not call its inner modules, so somebody's hook on one of them would be passed over, and so would
    a forward that was put on an instance. The hooks by which transformers records outputs stay on the modules for good;
    they matter only while weights are being recorded.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "a forward hook on all modules"
    if torch.is_grad_enabled():
        backward = _backward_hooks(modules)
        if backward is not None:
            return backward
    for module in modules:
        own = module.__dict__
        if not ("forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"]):
            continue
        if patched(module):
            return f"a forward of its own on {type(module).__name__}"
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(getattr(hook, "__module__", "") != _CAPTURING for hook in hooks):
            return f"a forward hook on {type(module).__name__}"
        if _weights_recorded():
            return "attention weights asked for"
    return None


_CAPTURING = "transformers.utils.output_capturing"


def _weights_recorded() -> bool:
    collector = getattr(sys.modules.get(_CAPTURING), "_active_collector", None)
    collected = None if collector is None else collector.get()
    return any(key != "hidden_states" and not key.startswith("_") for key in collected or ())
