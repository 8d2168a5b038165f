"""Noticing, at every call, that a module is no longer what it was when something was derived from it.

Finer than ``watch``: a captured graph freezes every attribute that a forward reads, so all of them are compared. By
identity, in one pass over dictionaries and lists that were found once, those inside attributes too: adapters keep their
scales and what is merged in such.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as _global

from ..structure import overridden

_CONFIGURATIONS = ("config", "_internal_dict")
"""What libraries call the attribute that holds a module's configuration; diffusers reads it at calls."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_ANY_MODULE = frozenset(vars(nn.Module()))
"""Attributes of torch's own: what they hold is looked at by itself."""
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


class AttributeWatch:
    """Remembers every attribute, submodule, parameter and buffer of ``modules`` and all modules inside them, their classes,
    what is set in their configurations, and where their hooks are kept."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self._every = every = tuple(dict.fromkeys(inner for one in modules for inner in one.modules()))
        self._classes = [*map(type, every)]
        self._owners: list[dict[str, Any]] = []
        for module in every:
            self._owners += (module.__dict__, module._modules, module._parameters, module._buffers)
            configurations = [module.__dict__.get(name) for name in _CONFIGURATIONS]
            self._owners += [vars(one) for one in configurations if hasattr(one, "__dict__")]
        containers = [*_containers(value for one in every for name, value in vars(one).items() if name not in _OF_ANY_MODULE)]
        self._owners += [one for one in containers if isinstance(one, dict)]
        self._lists = [one for one in containers if isinstance(one, list)]
        self._listed = [*map(list, self._lists)]
        self._sizes = [len(owner) for owner in self._owners]
        self._values = [value for owner in self._owners for value in owner.values()]
        self._names = [name for owner in self._owners for name in owner]
        self._newest = self._newest_names()
        tensors = {id(one): one for one in self._values if isinstance(one, Tensor)}.values()
        self._places = [one.data_ptr for one in tensors]
        self._at = [place() for place in self._places]
        self._forms = [asked for one in tensors for asked in (one.stride, one.size)]
        self._formed = [form() for form in self._forms]
        self._inside = [module for module in every if not any(module is one for one in modules)]
        self._hooks = [getattr(module, name) for module in self._inside for name in HOOKS]
        own = [(overridden(module), type(module).__name__) for module in self._inside]
        self._overridden = next((f"a {function} of its own on {name}" for function, name in own if function is not None), None)

    def moved(self) -> bool:
        """True where a tensor lies elsewhere than it did. Where none does, all the memory that was there is still held, because
        the tensors are held here: much less to ask than ``changed``."""
        return [place() for place in self._places] != self._at

    def changed(self) -> bool:
        """True where anything is another object than it was or of another class, or a tensor has another form where it lies."""
        return (
            [*map(len, self._owners)] != self._sizes
            or [*map(type, self._every)] != self._classes
            or self._newest_names() != self._newest
            or not all(map(is_, chain.from_iterable(map(dict.values, self._owners)), self._values))
            or [*map(len, self._lists)] != [*map(len, self._listed)]
            or not all(map(is_, chain.from_iterable(self._lists), chain.from_iterable(self._listed)))
            or [form() for form in self._forms] != self._formed
        )

    def _newest_names(self) -> list[str | None]:
        """A dictionary puts what has another name than before at its end."""
        return [*map(next, map(reversed, self._owners), repeat(None))]

    def hooked(self) -> str | None:
        """Why hooks, or functions put on instances, keep a graph from standing for the modules, or None. To be asked of what has
        not ``changed``. Hooks of ``modules`` themselves do not keep it: they run around the graph."""
        if hooked_everywhere():
            return "a hook on all modules"
        if any(self._hooks):
            hooked = next(one for one in self._inside if any(getattr(one, name) for name in HOOKS))
            return f"a hook on {type(hooked).__name__}"
        return self._overridden

    def restore(self) -> None:
        """Undo what was set, added or deleted since."""
        for module, own in zip(self._every, self._classes, strict=True):
            module.__class__ = own
        remembered = zip(self._names, self._values, strict=True)
        for owner, size in zip(self._owners, self._sizes, strict=True):
            before = dict(islice(remembered, size))
            for name in owner.keys() - before.keys():
                del owner[name]
            owner.update(before)
        for one, members in zip(self._lists, self._listed, strict=True):
            one[:] = members


def _containers(values: Iterable[Any]) -> Iterator[dict[Any, Any] | list[Any]]:
    """Dictionaries and lists among ``values``, and those inside them."""
    waiting, seen = [*values], set[int]()
    while waiting:
        one = waiting.pop()
        if type(one) in (dict, OrderedDict, list) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += one if isinstance(one, list) else one.values()


def hooked_everywhere() -> bool:
    """Whether a hook on all modules is set."""
    return any(getattr(_global, name) for name in _GLOBAL_HOOKS)
