"""Noticing, at every call, that a module is no longer what it was when something was derived from it.

Finer than ``watch``: a captured graph freezes every attribute that a forward reads, so all of them are compared. By
identity, in one pass over dictionaries that were found once; values inside lists and dictionaries are not looked at.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _global

from ..structure import patched

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))


class AttributeWatch:
    """Remembers every attribute, submodule, parameter and buffer of ``modules`` and all modules inside them."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self._sizes: list[tuple[dict[str, Any], int]] = []
        self._items: list[tuple[dict[str, Any], str, Any]] = []
        self._addresses: list[tuple[Tensor, int, tuple[int, ...]]] = []
        for module in (inner for one in modules for inner in one.modules()):
            for owner in (module.__dict__, module._modules, module._parameters, module._buffers):
                self._sizes.append((owner, len(owner)))
                self._items += [(owner, name, value) for name, value in owner.items()]
            tensors = (*module._parameters.values(), *module._buffers.values())
            self._addresses += [(one, one.data_ptr(), one.stride()) for one in tensors if one is not None]

    def changed(self) -> bool:
        return (
            any(len(owner) != size for owner, size in self._sizes)
            or any(owner.get(name) is not value for owner, name, value in self._items)
            or any(one.data_ptr() != at or one.stride() != stride for one, at, stride in self._addresses)
        )

    def restore(self) -> None:
        """Undo what was set, added or deleted since."""
        kept: dict[int, set[str]] = {}
        for owner, name, value in self._items:
            owner[name] = value
            kept.setdefault(id(owner), set()).add(name)
        for owner, _ in self._sizes:
            for name in owner.keys() - kept.get(id(owner), set()):
                del owner[name]


def hooked_everywhere() -> bool:
    """Whether a hook on all modules is set."""
    return any(getattr(_global, name) for name in _GLOBAL_HOOKS)


def hooked(modules: tuple[nn.Module, ...]) -> str | None:
    """Why hooks, or forwards put on instances, keep a graph from standing for ``modules``, or None. Hooks of ``modules``
    themselves do not: they run around the graph."""
    if hooked_everywhere():
        return "a hook on all modules"
    for module in modules:
        for inner in module.modules():
            if inner is not module and any(getattr(inner, name) for name in HOOKS):
                return f"a hook on {type(inner).__name__}"
            if inner is not module and patched(inner):
                return f"a forward of its own on {type(inner).__name__}"
    return None
