"""Faults of a replacement that does not notice what is done to its layer later: mode, parts, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from torch import nn

from policies import structure
from policies.fused.layer import FusedLayer
from policies.fused.state import FusedState
from policies.fused.watch import Settings, Watch

from .fault import Patch, Traits, miscomputing


def _in_training(fused: Callable[[FusedLayer], bool]) -> Patch:
    """The fused path runs in training mode too, in layers that are ``fused`` then."""

    def make(honest: Any) -> Any:
        def wrong(self: FusedLayer, *rest: Any) -> Any:
            reason = honest(self, *rest)
            return None if reason == "training mode" and fused(self) else reason

        return wrong

    return FusedLayer, "_why_not", make


def _never_bound_again(honest: Any) -> Any:
    def wrong(self: FusedState, layer: Any) -> None:
        if not hasattr(self, "watch"):
            honest(self, layer)

    return wrong


def _other_modules_unseen(honest: Any) -> Any:
    """Parameters are watched, and the modules that hold them are not."""

    def wrong(self: Watch, *rest: Any, **named: Any) -> None:
        honest(self, *rest, **named)
        self._owners = [own for own in self._owners if not any(isinstance(one, nn.Module) for one in own.values())]
        self._sizes = [len(own) for own in self._owners]
        self._members = [member for own in self._owners for member in own.values()]

    return wrong


def _classes_unseen(honest: Any) -> Any:
    """Modules are known by identity alone, and what becomes of them is not looked at."""

    def wrong(self: Settings, *rest: Any, **named: Any) -> None:
        honest(self, *rest, **named)
        self._classes = mock.ANY

    return wrong


def _configured(traits: Traits) -> bool:
    """Whether any layer reads a configuration at its calls."""
    parts = (part for layer in traits.layers for part in layer.modules())
    return any(call.configured for call in traits.calls) and any(hasattr(part, "config") for part in parts)


def _configurations_unseen(honest: Any) -> Any:
    def wrong(self: Settings, *rest: Any, configured: bool) -> None:
        honest(self, *rest, configured=False)

    return wrong


def _settings_unseen(honest: Any) -> Any:
    def wrong(self: Settings, layer: nn.Module, *rest: Any, **named: Any) -> None:
        honest(self, layer, *rest, **named)
        self._own, self._inner = [], []
        self._set_to = self._now(layer)

    return wrong


def _functions_unseen(honest: Any) -> Any:
    def wrong(self: Settings, layer: nn.Module, *rest: Any, **named: Any) -> None:
        honest(self, layer, *rest, **named)
        self._inner = [(module, name) for module, name in self._inner if not callable(getattr(module, name))]
        self._set_to = self._now(layer)

    return wrong


def _activation_calls(traits: Traits) -> bool:
    """Whether any layer has an activation with a kernel that keeps the function that it calls."""
    return any(hasattr(part, "act") for layer in traits.layers for part in layer.modules() if type(part).__name__ in _KEEPING)


_KEEPING = ("GELUActivation", "GELUTanh")


LATER = (
    miscomputing(
        "F83 training",
        "F83",
        "DeepSpeed #3543",
        "The fused path runs in training too, without dropout.",
        _in_training(lambda layer: True),
        expects=("training step", "gradients"),
    ),
    miscomputing(
        "F83 one part",
        "F83",
        "DeepSpeed #3543",
        "The fused path runs without dropout where a part of the layer alone is in training mode, as to sample from a model.",
        _in_training(lambda layer: not layer.training),
        expects=("settings",),
    ),
    miscomputing(
        "F83 never again",
        "F83 M22",
        "DeepSpeed PR #3736",
        "A parameter that is exchanged after the swap is not noticed.",
        (FusedState, "bind", _never_bound_again),
        expects=("parameter accounting",),
    ),
    miscomputing(
        "F83 another module",
        "F83",
        "DeepSpeed PR #3736",
        "A module that is put in the place of a layer's own after the swap is not noticed.",
        (Watch, "__init__", _other_modules_unseen),
        expects=("parameter accounting",),
    ),
    miscomputing(
        "F83 another class",
        "F83 F08",
        "Liger-Kernel #764",
        "A module that becomes one of another class after the swap is taken for what it was.",
        (Settings, "__init__", _classes_unseen),
        expects=("settings",),
    ),
    miscomputing(
        "F83 settings",
        "F83 F04",
        "DeepSpeed PR #791",
        "A norm's epsilon, a scale, a flag that is set after the swap has no effect.",
        (Settings, "__init__", _settings_unseen),
        expects=("settings",),
    ),
    miscomputing(
        "F83 function",
        "F83 M01",
        "DeepSpeed PR #791",
        "A function that is put in the place of an activation's own after the swap is not called.",
        (Settings, "__init__", _functions_unseen),
        applies=_activation_calls,
        expects=("settings",),
    ),
    miscomputing(
        "M01 by class",
        "M01 F83",
        "code read",
        "An activation is known by its class alone, whatever it has been given to call.",
        (structure, "_calls_another", lambda honest: lambda activation, kind: False),
        applies=_activation_calls,
        expects=("settings",),
    ),
    miscomputing(
        "F83 configuration",
        "F83 F39",
        "DeepSpeed PR #7443",
        "What is set in the configuration after the swap has no effect, though the layer reads it at every call.",
        (Settings, "__init__", _configurations_unseen),
        applies=_configured,
        expects=("settings",),
    ),
)
"""What is done later, unseen."""
