"""Weights and settings that are read too early, copied, or written."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..tiny import Forward, cache_of


def with_its_first_epsilon(where: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    """A change by which calls with such a hidden state and cache do not see that an epsilon is another by now."""

    def change(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
        norm = state["layer"].input_layernorm
        now = norm.variance_epsilon
        first = state.setdefault("epsilon", now)
        norm.variance_epsilon = first if where(hidden, cache_of(kwargs)) else now
        try:
            return own(hidden, *args, **kwargs)
        finally:
            norm.variance_epsilon = now

    return change


def writes_weights(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        state["layer"].mlp.down_proj.weight.mul_(1 + 1e-6)
    return own(*args, **kwargs)


@contextlib.contextmanager
def put_back(kept: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Each owner has what it had by that name, for a while."""
    now = [(owner, name, getattr(owner, name)) for owner, name, _ in kept]
    for owner, name, value in kept:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in now:
            setattr(owner, name, value)


def keeps_its_implementation(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    config = state["layer"].self_attn.config
    first = state.setdefault("implementation", config._attn_implementation)
    with put_back([(config, "_attn_implementation", first)]):
        return own(*args, **kwargs)


def knows_no_later_bias(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    linears = [part for part in state["layer"].modules() if isinstance(part, nn.Linear)]
    with put_back([(part, "bias", None) for part in state.setdefault("without", [one for one in linears if one.bias is None])]):
        return own(*args, **kwargs)


def reads_weights_alone(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Whatever has a weight is taken for the linear whose weight that is."""
    parts = [(owner, name, one) for owner in state["layer"].modules() for name, one in owner.named_children() if one._modules]
    around = [part for part in parts if isinstance(getattr(part[2], "weight", None), nn.Parameter)]
    with put_back([(owner, name, next(one.children())) for owner, name, one in around]):
        return own(*args, **kwargs)


def reads_what_is_parametrized(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The parameter itself, and not what a parametrization makes of it."""
    lists = [one for one in state["layer"].modules() if isinstance(one, parametrize.ParametrizationList)]
    with put_back([(one, "0", nn.Identity()) for one in lists]):
        return own(*args, **kwargs)


def reads_what_is_pruned(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The parameter itself, and not what a hook makes of it and a mask."""
    pruned = [one for one in state["layer"].modules() if hasattr(one, "weight_mask")]
    with put_back([(one, "weight_mask", torch.ones_like(one.weight_mask)) for one in pruned]):
        return own(*args, **kwargs)


def takes_gains_for_ones(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Looks once whether they are."""
    norm = state["layer"].input_layernorm
    unit = state.setdefault("unit", bool((norm.weight == 1).all()))
    with put_back([(norm, "weight", nn.Parameter(torch.ones_like(norm.weight)))] if unit else []):
        return own(*args, **kwargs)


def decodes_with_its_first_weights(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    if hidden.shape[1] > 1 or cache_of(kwargs) is None:
        return own(hidden, *args, **kwargs)
    linears = [part for part in state["layer"].modules() if isinstance(part, nn.Linear)]
    with put_back(state.setdefault("table", [(one, "weight", one.weight) for one in linears])):
        return own(hidden, *args, **kwargs)


def stale_copy(layer: nn.Module) -> None:
    core = layer.fused.core  # type: ignore[union-attr]
    core.mlp.down = dataclasses.replace(core.mlp.down, stored=core.mlp.down.stored.detach().clone())


def keeps_its_memory(layer: nn.Module) -> None:
    """It sees what is written there, and not that a parameter has other memory."""
    core = layer.fused.core  # type: ignore[union-attr]
    core.mlp.down = dataclasses.replace(core.mlp.down, stored=core.mlp.down.stored.view_as(core.mlp.down.stored))


def keeps_a_copy(layer: nn.Module) -> None:
    layer.spare = layer.mlp.down_proj.weight.detach().clone()  # type: ignore[union-attr, assignment]


def unties(layer: nn.Module) -> None:
    for owner in layer.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(parameter.detach().clone()))
