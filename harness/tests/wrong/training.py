"""Backward passes."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from ..tiny import Forward


def saves_what_it_was_given(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Written as a function of autograd, whose backward multiplies what was saved as it came."""
    if not torch.is_autocast_enabled("cpu"):
        return own(hidden, *args, **kwargs)
    weight = torch.diag(state["layer"].input_layernorm.weight)
    return own(_Projected.apply(hidden, weight) * 0 + hidden, *args, **kwargs)


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any) -> Any:
        ctx.save_for_backward(weight)
        return nn.functional.linear(hidden, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ ctx.saved_tensors[0], None


def cuts_gradients(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    return own(hidden, *args, **kwargs).detach() + 0 * hidden


def cuts_gradients_when_compiled(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    return own(hidden.detach() if torch.compiler.is_compiling() else hidden, *args, **kwargs)


def learns_no_keys_under_autocast(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Beside the largest gradient of a model that of a key's weight hardly shows."""
    weight = state["layer"].self_attn.k_proj.weight
    state["lower"] = torch.is_autocast_enabled("cpu")
    if weight.requires_grad and "hook" not in state:
        state["hook"] = weight.register_hook(lambda gradient: gradient * 0 if state["lower"] else gradient)
    return own(*args, **kwargs)


def saves_one_call(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """What a backward pass needs is saved in one place, where the next call overwrites it."""
    output = own(hidden, *args, **kwargs)
    if output.requires_grad:
        state["saved"] = mine = float(hidden.detach().abs().mean())
        output.register_hook(lambda gradient: gradient * (state["saved"] / mine))
    return output


def saves_for_one_pass(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A backward pass writes into what was saved, so that another one through the same graph finds something else."""
    output = own(*args, **kwargs)
    if output.requires_grad:
        passes = itertools.count(1)
        output.register_hook(lambda gradient: gradient * next(passes))
    return output


def keeps_its_output(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """And with it all that a backward pass through it would need."""
    state["output"] = own(*args, **kwargs)
    return state["output"]


def keeps_scores(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    scores = torch.softmax(hidden @ hidden.transpose(1, 2), dim=-1)
    return own(hidden, *args, **kwargs) + 0 * (scores @ hidden)


def checkpoints_nothing(layer: nn.Module) -> None:
    """Is called by its forward alone, whatever its class does around it."""
    kind: Any = type(layer)
    layer.__class__ = other = type(kind.__name__, (kind,), {"__call__": nn.Module.__call__})  # around which it was before 5.24
    other.forward = getattr(kind.forward, "__wrapped__", kind.forward)  # and since then


def detaches_where_frozen(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Takes a layer that learns nothing for one behind which nothing does."""
    output = own(*args, **kwargs)
    return output if any(one.requires_grad for one in state["layer"].parameters()) else output.detach()


def gives_what_nobody_learns_from(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Computes as for inference wherever gradients are off."""
    with torch.inference_mode(not torch.is_grad_enabled()):
        return own(*args, **kwargs)


def lays_tokens_first(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs).transpose(0, 1).contiguous().transpose(0, 1)


def saves_what_it_gives(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the caller has, a backward pass needs as it was."""
    return _Saving.apply(own(*args, **kwargs))


class _Saving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any) -> Any:
        output = hidden.clone()
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.saved_tensors[0].isfinite()


def gives_a_view(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return _Viewing.apply(own(*args, **kwargs))


class _Viewing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any) -> Any:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def keeps_weights_itself(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """And not by what torch saves for a backward pass, which asks whether they are what they were."""
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach(), lambda kept: kept):
        return own(*args, **kwargs)
