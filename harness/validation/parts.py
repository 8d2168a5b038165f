"""One call of a layer, part by part: what each was given and what it returned."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..properties.equality import main_output

CLOSE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One call of one part of the layer."""

    module: nn.Module
    given: Tensor
    returned: Tensor


def watched(model: nn.Module, layer: nn.Module, kwargs: dict[str, Any]) -> tuple[dict[str, Passed], dict[str, Any], Any]:
    """Each part's call in the order of their ends, the layer's own call by argument name, and what it returned."""
    parts: dict[str, Passed] = {}
    call: dict[str, Any] = {}
    outputs: list[Any] = []
    names = list(inspect.signature(layer.forward).parameters)

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
            returned = main_output(output)
            if given is not None and isinstance(returned, Tensor):
                # Copies: what comes next may add to a tensor in place.
                parts[path] = Passed(module=module, given=given.clone(), returned=returned.clone())

        return hook

    def whole(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call.update({**dict(zip(names, args)), **kwargs})
        outputs.append(output)

    with contextlib.ExitStack() as hooks:
        for path, one in layer.named_modules():
            hooks.enter_context(one.register_forward_hook(note(path) if path else whole, with_kwargs=True))
        model(**kwargs)
    call["hidden_states"] = call.get("hidden_states", next(iter(call.values())))
    return parts, call, outputs[0]


def linear_paths(parts: dict[str, Passed]) -> list[str]:
    """Paths of linears, and of what is built on one and returned the same."""
    return [path for path, part in parts.items() if is_plain(part) or is_linear(part)]


def is_plain(part: Passed) -> bool:
    return type(part.module).__name__ in ("Linear", "Conv1D")


def is_linear(part: Passed) -> bool:
    """Whether a subclass of ``nn.Linear`` returned what ``nn.Linear`` would have."""
    module = part.module
    if not isinstance(module, nn.Linear):
        return False
    with torch.no_grad():
        return same(part.returned, nn.functional.linear(part.given, module.weight, module.bias))


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two float64 tensors hold the same values, up to the rounding of one addition more or less."""
    if one.shape != other.shape:
        return False
    return float((one - other).abs().max()) <= CLOSE * max(float(other.abs().max()), 1e-300)
