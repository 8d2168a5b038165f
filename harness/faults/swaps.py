"""What a faulty replace engine does to a model and to the handle that it gives back."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from policies import catalogue, replace_module
from policies.replace import NothingReplacedWarning, Replacement

from ..trial import Handle, Replacer
from .edits import each_linear
from .layout import transposed


def nothing(_: Replacer) -> Replacer:
    return lambda model: Replacement(model, (), (), ())


def only(choose: Callable[[tuple[Any, ...]], slice]) -> Callable[[Replacer], Replacer]:
    """Swap only some of the layers; the others stay."""

    def make(replacer: Replacer) -> Replacer:
        def wrong(model: nn.Module) -> Handle:
            handle: Any = replacer(model)
            kept = choose(handle.replaced)
            for swap in reversed(handle.swaps):
                if swap not in handle.swaps[kept]:
                    swap.revert()
            return Replacement(model, handle.replaced[kept], handle.left, handle.swaps[kept])

        return wrong

    return make


def only_claimed(replacer: Replacer) -> Replacer:
    """Says that it replaced, and has changed nothing."""

    def wrong(model: nn.Module) -> Handle:
        handle = replacer(model)
        handle.revert()
        return handle

    return wrong


def without_policy(replacer: Replacer) -> Replacer:
    """The policy is there and is not in the list that the engine reads."""

    def wrong(model: nn.Module) -> Handle:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingReplacedWarning)
            used = {one.policy for one in replacer(copy.deepcopy(model)).replaced}
            return replace_module(model, [one for one in catalogue.policies() if one.__name__ not in used])

    return wrong


def after(act: Callable[[Handle, nn.Module], None]) -> Callable[[Replacer], Replacer]:
    """Replace as it should be, then do something to the model."""

    def make(replacer: Replacer) -> Replacer:
        def wrong(model: nn.Module) -> Handle:
            handle = replacer(model)
            act(handle, model)
            return handle

        return wrong

    return make


def unties(_: Handle, model: nn.Module) -> None:
    """Every holder of a shared parameter gets its own copy."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            elif parameter is not None:
                seen.add(id(parameter))


def anew(_: Handle, model: nn.Module) -> None:
    """Every plain parameter is another object of the same value, in all of its places."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if type(parameter) is nn.Parameter:
                module._parameters[name] = made.setdefault(id(parameter), nn.Parameter(parameter.data, parameter.requires_grad))


def remembering(replacer: Replacer) -> Replacer:
    """Whatever was replaced is kept in a list for good."""
    kept = []

    def wrong(model: nn.Module) -> Handle:
        kept.append(replacer(model))
        return kept[-1]

    return wrong


def transposes_source(handle: Handle, model: nn.Module) -> None:
    """Square weights are transposed in the layer's own storage, and read so."""
    for layer in _fused(handle, model):
        core = layer.fused.core
        core.attention.unpack()
        turned = each_linear(transposed)(core.anatomy)
        with torch.no_grad():
            for name, parameter in core.anatomy.parameters.items():
                if name.endswith("weight") and parameter.dim() == 2 and parameter.shape[0] == parameter.shape[1]:
                    parameter.copy_(parameter.t().clone())
        layer.fused.core = type(core)(turned, packing=False)


def _fused(handle: Handle, model: nn.Module) -> list[Any]:
    layers = [model.get_submodule(one.path) for one in handle.replaced]
    return [layer for layer in layers if hasattr(type(layer), "_fused_policy")]


def keeps_originals(handle: Handle, model: nn.Module) -> None:
    for one in handle.replaced:
        layer = model.get_submodule(one.path)
        layer.__dict__["_before"] = [one.detach().clone() for one in layer.parameters()]


def adds_buffer(handle: Handle, model: nn.Module) -> None:
    for one in handle.replaced:
        layer = model.get_submodule(one.path)
        first = next(layer.parameters())
        layer.register_buffer("qkv_packed", first.detach().clone())


def loses_attribute(handle: Handle, model: nn.Module) -> None:
    for one in handle.replaced:
        layer = model.get_submodule(one.path)
        for name in public_attributes(layer)[:1]:
            delattr(layer, name)


def public_attributes(layer: nn.Module) -> list[str]:
    """Attributes that a parent may read, besides modules and the training flag."""
    return [name for name in vars(layer) if not name.startswith("_") and name != "training"]


def casts_norms(handle: Handle, model: nn.Module) -> None:
    """Gains rounded to half precision in the layer's own storage."""
    for one in handle.replaced:
        for parameter in model.get_submodule(one.path).parameters():
            if parameter.dim() == 1:
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    parameter.copy_(parameter.half())


class _Wrapper(nn.Module):
    """A replacement that is a module of its own instead of the layer that it stands for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def wraps(handle: Handle, model: nn.Module) -> None:
    for one in handle.replaced:
        parent, _, name = one.path.rpartition(".")
        setattr(model.get_submodule(parent), name, _Wrapper(model.get_submodule(one.path)))


def _shared_core(cores: dict[str, Any], path: str, state: object) -> Any:
    return cores[path]


def shared_cores(replacer: Replacer) -> Replacer:
    """What a layer derived from its weights is kept under its path, for the whole process."""
    cores: dict[str, Any] = {}

    def wrong(model: nn.Module) -> Handle:
        handle = replacer(model)
        for one in handle.replaced:
            layer: Any = model.get_submodule(one.path)
            if not hasattr(type(layer), "_fused_policy"):
                continue
            state = layer.fused
            cores[one.path] = state.core
            del state.core
            core = property(functools.partial(_shared_core, cores, one.path), lambda state, core: None)
            state.__class__ = type("GlobalState", (type(state),), {"core": core})
        return handle

    return wrong


class Forgetful:
    """A handle whose revert gives back the values from before the swap, whatever has happened to them since."""

    def __init__(self, handle: Handle) -> None:
        self.model, self.replaced, self.left = handle.model, handle.replaced, handle.left
        self._handle = handle
        self._values = [one.detach().clone() for one in handle.model.parameters()]

    def revert(self) -> None:
        self._handle.revert()
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), self._values, strict=True):
                parameter.copy_(value)


class Irreversible:
    def __init__(self, handle: Handle) -> None:
        self.model, self.replaced, self.left = handle.model, handle.replaced, handle.left

    def revert(self) -> None:
        """Does nothing."""
