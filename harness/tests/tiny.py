"""A small Llama case for tests of properties, and how a wrong replacer of it is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from harness.case import Axis, Example
from harness.hf.case import TransformersCase
from policies import replace_module
from policies.calls import CACHE_NAMES
from policies.replace import Replacement
from policies.swap import Swap

Forward = Callable[..., Any]


class TinyLlama(TransformersCase):
    name = "tiny"
    title = "Small Llama for tests"
    configuration = "transformers:LlamaConfig"
    model = "transformers:LlamaModel"
    layer = "transformers.models.llama.modeling_llama:LlamaDecoderLayer"
    axes = (
        Axis("attention", ("sdpa", "eager")),
        Axis("kv_heads", (1, 2)),
        Axis("layers", (1, 2)),
        Axis("batch", (1, 2, 3), large=(9, 17), largest=(65,)),
        Axis("tokens", (3, 1, 5)),
        Axis("padding", ("none", "right", "left")),
        Axis("mask", ("none", "2d", "4d float")),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {
            "hidden_size": 12,
            "head_dim": 4,
            "num_attention_heads": 2 * example["kv_heads"],
            "num_key_value_heads": example["kv_heads"],
            "intermediate_size": 7,
            "num_hidden_layers": example["layers"],
            "vocab_size": 37,
            "max_position_embeddings": 24,
            "bos_token_id": None,
            "eos_token_id": None,
        }


class Worst:
    """What one wrong replacer remembers between the models that it is given."""

    def __init__(self) -> None:
        self.models: set[int] = set()
        self.outputs: list[Any] = []
        self.masks: dict[int, Any] = {}


class Undoing(Swap):
    """What is done when a replacement is reverted."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self.undo = undo

    def install(self) -> None: ...

    def revert(self) -> None:
        self.undo()


def around(change: Callable[..., Any]) -> Callable[[nn.Module], Replacement]:
    """A replacer whose layers answer ``change(own forward, call's state, *args, **kwargs)``."""
    shared = Worst()

    def replacer(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        undone = []
        for one in handle.replaced:
            layer: Any = model.get_submodule(one.path)
            state = {"model": id(model), "shared": shared, "layer": layer}
            layer._fused_forward = functools.partial(_changed, change, layer._fused_forward, state)
            undone.append(Undoing(functools.partial(vars(layer).pop, "_fused_forward", None)))
        return dataclasses.replace(handle, swaps=(*undone, *handle.swaps))

    return replacer


def _changed(change: Callable[..., Any], own: Callable[..., Any], state: dict[str, Any], args: Any, kwargs: Any) -> Any:
    """In the place of what a fused layer's forward calls, where nobody takes it for somebody else's forward."""
    return change(lambda *args, **kwargs: own(args, kwargs), state, *args, **kwargs)


def edited(edit: Callable[[nn.Module], None]) -> Callable[[nn.Module], Replacement]:
    """A replacer that does something to each layer once it is replaced."""

    def replacer(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        for one in handle.replaced:
            edit(model.get_submodule(one.path))
        return handle

    return replacer


def cache_of(kwargs: dict[str, Any]) -> Any:
    """The cache that a layer was called with, by whatever name this release of transformers hands it down."""
    return next((kwargs[name] for name in CACHE_NAMES if name in kwargs), None)


def in_a_step(hidden: Any, cache: Any) -> bool:
    return hidden.shape[1] == 1 and cache is not None


def in_a_prompt(hidden: Any, cache: Any) -> bool:
    return hidden.shape[1] >= 128
