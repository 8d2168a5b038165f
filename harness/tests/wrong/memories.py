"""What is kept of one call, or of one model, and shows in another."""

from __future__ import annotations

from typing import Any

import torch

from ..tiny import Forward, cache_of


def drifts(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["calls"] = state.get("calls", 0) + 1
    return own(*args, **kwargs) * (1 + 1e-13 * state["calls"])


def keeps_the_last_mask(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What was made of a mask serves until another tensor comes."""
    mask = kwargs["attention_mask"]
    if mask is not None:
        if state.get("mask") is not mask:
            state["mask"], state["made"] = mask, mask.clone()
        kwargs["attention_mask"] = state["made"]
    return own(*args, **kwargs)


def keeps_each_output(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    state["shared"].outputs.append(output.detach())
    return output


def keeps_a_mask_of_each_length(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    length = hidden.shape[1]
    state["shared"].masks.setdefault(length, torch.ones(length, length, dtype=torch.bool).tril())
    return own(hidden, *args, **kwargs)


def keeps_the_last_masks(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = keeps_a_mask_of_each_length(own, state, hidden, *args, **kwargs)
    masks = state["shared"].masks
    if len(masks) > 128:
        del masks[next(iter(masks))]
    return output


def wears_out(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["calls"] = state.get("calls", 0) + 1
    return own(*args, **kwargs) * (1.0 if state["calls"] <= 100 else 1.01)


def sixteen_places(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Keeps what is decoded in a place for each new token, and begins again when all are taken."""
    decodes = hidden.shape[1] == 1 and cache_of(kwargs) is not None
    state["places"] = state.get("places", 0) + 1 if decodes else 0
    return own(hidden, *args, **kwargs) * (1.0 if state["places"] <= 16 else 1.01)


def begins_and_ends(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Notes that it works, and that it does not any more; whoever finds it at work must be another call inside this one."""
    inside = state.get("works", False)
    state["works"] = True
    output = own(*args, **kwargs)
    state["works"] = False
    return output * 2 if inside else output


def remembers_first_call(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    first = state.setdefault("first", float(hidden.abs().sum()))
    return own(hidden, *args, **kwargs) * (1 + 1e-13 * first)


def counts_models(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["shared"].models.add(state["model"])
    return own(*args, **kwargs) * (1 + 1e-6 * (len(state["shared"].models) - 1))


def leaves_gradients_off(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Puts them on again at its end alone, and at no other."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    output = own(*args, **kwargs)
    torch.set_grad_enabled(before)
    return output


def is_not_deterministic(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError("attention has no deterministic algorithm")
    return own(*args, **kwargs)
