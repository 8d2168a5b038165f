"""Replacement policies: what a layer is, and how a faster one takes its place.

``replace_module(model)`` replaces in place and returns a handle; ``load_replaced(model_class, folder)`` builds a replaced
model from a checkpoint; ``replace_policies`` and ``generic_policies`` are the policy classes.
Importing this package imports no torch: names are resolved when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import catalogue
from .base import DSPolicy, TransformerPolicy
from .plans import PlanUnavailable
from .swap import UnsupportedLayer

if TYPE_CHECKING:
    from .checkpoint.load import CheckpointError, Loaded, load_replaced
    from .replace import NothingReplacedWarning, Replacement, replace_module

    replace_policies: tuple[type[DSPolicy], ...]
    generic_policies: tuple[type[DSPolicy], ...]

__all__ = [
    "CheckpointError",
    "DSPolicy",
    "Loaded",
    "NothingReplacedWarning",
    "PlanUnavailable",
    "Replacement",
    "TransformerPolicy",
    "UnsupportedLayer",
    "generic_policies",
    "load_replaced",
    "replace_module",
    "replace_policies",
]


def __getattr__(name: str) -> Any:
    if name == "replace_policies":
        return tuple(entry.load() for entry in catalogue.TRANSFORMER_ENTRIES)
    if name == "generic_policies":
        return tuple(entry.load() for entry in catalogue.GENERIC_ENTRIES)
    if name in ("replace_module", "Replacement", "NothingReplacedWarning"):
        from . import replace

        return getattr(replace, name)
    if name in ("load_replaced", "Loaded", "CheckpointError"):
        from .checkpoint import load

        return getattr(load, name)
    for entry in catalogue.ENTRIES:
        if entry.policy.endswith(f":{name}"):
            return entry.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
