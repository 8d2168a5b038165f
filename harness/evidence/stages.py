"""Listening to a model stage by stage: an original by hooks, a replaced one by hooks and by what its layers emit.

A stage is named by the path of the original's submodule whose output it is, or by that path and ``:input`` for what
goes into it. Fused layers compute without calling their submodules and emit their stages under the same names; every
other module is heard through hooks. Hooks are never put inside a fused layer, which would leave its fused path.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..nested import tensors_in

INPUT = ":input"
Hear = Callable[[str, Tensor], None]
Heard = dict[str, list[Tensor]]
"""Tensors by stage, one for each time that the stage was passed, in order."""


@contextlib.contextmanager
def listening(model: nn.Module, hear: Hear) -> Iterator[None]:
    """Inside, ``hear`` is given every stage of ``model``, in the order in which they are computed.

    The tensor given is the one that the model goes on with: writing to it changes what follows.
    """
    layers = fused_layers(model)
    with contextlib.ExitStack() as ears:
        for path, module in model.named_modules():
            if not any(path.startswith(joined(layer, "")) for layer in layers):
                ears.enter_context(module.register_forward_pre_hook(_before(path, hear), with_kwargs=True))
                ears.enter_context(module.register_forward_hook(_after(path, hear)))
        for path, layer in layers.items():
            ears.callback(setattr, layer.fused, "emit", layer.fused.emit)
            layer.fused.emit = _emitted(path, hear)
        yield


def recorded(heard: Heard) -> Hear:
    """Puts a copy of every stage into ``heard``."""
    return lambda stage, tensor: heard[stage].append(tensor.detach().clone())


def nothing_heard() -> Heard:
    return defaultdict(list)


def fused_layers(model: nn.Module) -> dict[str, Any]:
    """Layers of ``model`` that emit their stages, by path."""
    return {path: one for path, one in model.named_modules() if hasattr(getattr(one, "fused", None), "emit")}


def joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def main_tensor(value: Any) -> Tensor | None:
    """What a module computes, out of what it returns: the first float tensor.

    Megatron's linears return their bias apart, for the caller to add; it is added here.
    """
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, Tensor) for one in value):
        out, bias = value
        return out + bias if bias.shape == out.shape[-1:] else out
    return _first(value)


def _first(value: Any) -> Tensor | None:
    """The first float tensor in ``value``, however deep."""
    return next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)


def _before(path: str, hear: Hear) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = _first((*args, *kwargs.values()))
        if tensor is not None:
            hear(f"{path}{INPUT}", tensor)

    return hook


def _after(path: str, hear: Hear) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = main_tensor(output)
        if tensor is not None:
            hear(path, tensor)

    return hook


def _emitted(path: str, hear: Hear) -> Hear:
    return lambda name, tensor: hear(joined(path, name), tensor)
