"""From a layer class to the models that contain it, among those of its modeling module."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from torch import nn

from ..search import quiet
from ..suggest import suggestion


class NotDerivable(ValueError):
    """No case can be derived for a layer class; one line says why, and what to write instead."""


def layer_class(path: str) -> type[nn.Module]:
    """The class behind ``module:Class``. Raises ``NotDerivable`` with a suggestion."""
    module_name, _, name = path.partition(":")
    if not name:
        raise NotDerivable(f"{path!r} is not of the form module:Class")
    try:
        module = import_module(module_name)
    except ImportError as problem:
        raise NotDerivable(f"{module_name} cannot be imported: {problem}") from None
    found = getattr(module, name, None)
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return found
    layers = [n for n, cls in vars(module).items() if inspect.isclass(cls) and issubclass(cls, nn.Module)]
    hint = suggestion(name, layers, "", cutoff=0.3)
    raise NotDerivable("; ".join(filter(None, (f"{module_name} has no module class {name}", hint))))


def layers_of(model: nn.Module, path: str) -> list[nn.Module]:
    """The layers of ``model`` that are of the class ``module:Class``, exactly."""
    cls = layer_class(path)
    return [one for one in model.modules() if type(one) is cls]


def models_with(layer: type[nn.Module], tiny: Any) -> list[Any]:
    """The model classes that contain ``layer``, those with the fewest parameters first.

    ``tiny(config_class)`` makes a small configuration. Raises ``NotDerivable`` where no model of the module has one.
    """
    from transformers import PreTrainedModel

    module = import_module(layer.__module__)
    candidates = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, PreTrainedModel) and cls.__module__ == layer.__module__
    ]
    if not candidates:
        raise NotDerivable(f"{layer.__module__} has no transformers model: write a Case beside the policy")
    sizes = []
    problems = []
    for place, cls in enumerate(candidates):
        size, problem = _size(cls, layer, tiny)
        if size is not None:
            sizes.append((size, place, cls))
        elif problem is not None:
            problems.append(f"{cls.__name__}: {problem}")
    if not sizes:
        reasons = "; ".join(problems[:2]) or "none contains it"
        raise NotDerivable(f"no model of {layer.__module__} could be built with a {layer.__name__} in it ({reasons})")
    return [cls for _, _, cls in sorted(sizes)]


def _size(cls: Any, layer: type[nn.Module], tiny: Any) -> tuple[int | None, str | None]:
    """How many parameters a tiny ``cls`` has, if it contains ``layer``; or why it could not be built."""
    config_class = getattr(cls, "config_class", None)
    if config_class is None or "forward" not in vars(cls):
        return None, None
    try:
        with quiet():
            model = cls(tiny(config_class))
    except Exception as problem:
        return None, f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}"
    if not any(type(one) is layer for one in model.modules()):
        return None, None
    return sum(p.numel() for p in model.parameters()), None
