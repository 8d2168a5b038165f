"""Kernels that take what they are called with for something more usual."""

from __future__ import annotations

from typing import Any

import torch

from harness.properties.forms import UNKNOWN

from ..tiny import Forward, cache_of


def names_only(own: Forward, state: dict[str, Any], hidden_states: Any, **kwargs: Any) -> Any:
    return own(hidden_states, **kwargs)


def within_half_precision(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    most = torch.finfo(torch.float16).max
    return own(*args, **kwargs).clamp(-most, most)


def made_finite(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    most = torch.finfo(hidden_states.dtype).max
    return own(hidden_states.clamp(-most, most), *args, **kwargs)


def causal_by_its_corners(
    own: Forward, state: dict[str, Any], hidden_states: Any, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """Leaves out a mask whose first query sees itself alone and whose last sees all."""
    mask, by_sdpa = attention_mask, state["layer"].self_attn.config._attn_implementation == "sdpa"
    if by_sdpa and getattr(mask, "dtype", None) is torch.bool and not mask[:, :, 0, 1:].any() and mask[:, :, -1].all():
        attention_mask = None
    return own(hidden_states, attention_mask, *args, **kwargs)


def cuts_masks(own: Forward, state: dict[str, Any], hidden_states: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(attention_mask, torch.Tensor) and cache_of(kwargs) is None:
        attention_mask = attention_mask[..., : hidden_states.shape[1]]
    return own(hidden_states, attention_mask, *args, **kwargs)


def divides_by_length(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    length = hidden_states.norm(dim=-1, keepdim=True)
    return own(hidden_states / length * length, *args, **kwargs)


def steps_by_size(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Goes from row to row by the number of a row's elements, which finds nothing behind one that is there once."""
    output = own(hidden_states, *args, **kwargs)
    return output * 0 if len(hidden_states) > 1 and hidden_states.stride(0) == 0 else output


def whole_storage(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Reads from where the memory begins, whatever part of it the tensor is."""
    if hidden_states.storage_offset():
        hidden_states = hidden_states.as_strided(hidden_states.shape, hidden_states.stride(), 0)
    return own(hidden_states, *args, **kwargs)


def needs_a_row(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    if len(hidden_states) == 0:
        raise RuntimeError("no rows to work on")
    return own(hidden_states, *args, **kwargs)


def takes_any_name(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Passes over what its original has no name for, and would not take."""
    kwargs.pop(UNKNOWN, None)
    return own(*args, **kwargs)


def deaf_to_unheard_of_encoders(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Passes over the states of an encoder where it has no cross-attention; the original says that it has none."""
    if not hasattr(state["layer"], "crossattention"):
        kwargs.pop("encoder_hidden_states", None)
    return own(*args, **kwargs)


def needs_an_encoder(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Attends to its own tokens where it has cross-attention and is given no states; the original attends to nothing there."""
    if hasattr(state["layer"], "crossattention") and kwargs.get("encoder_hidden_states") is None:
        kwargs["encoder_hidden_states"] = hidden_states
    return own(hidden_states, *args, **kwargs)


def one_mask_of_the_encoders_for_all_heads(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    mask = kwargs.get("encoder_attention_mask")
    if mask is not None and mask.dim() == 4:
        kwargs["encoder_attention_mask"] = mask[:, :1]
    return own(*args, **kwargs)


def encoder_of_each_row(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    encoder = kwargs.get("encoder_hidden_states")
    assert encoder is None or len(encoder) == len(hidden_states)
    return own(hidden_states, *args, **kwargs)


def needs_something_of_the_encoder(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Divides by the sum of weights that are nothing where a row is masked from an encoder altogether."""
    output, mask = own(*args, **kwargs), kwargs.get("encoder_attention_mask")
    if mask is None or mask.dim() != 4:
        return output
    seen = mask if mask.dtype is torch.bool else mask > -1e4
    blind = ~seen.flatten(1).any(-1)
    lost = [one.masked_fill(blind[:, None, None], torch.nan) for one in (output if isinstance(output, tuple) else (output,))[:1]]
    return (*lost, *output[1:]) if isinstance(output, tuple) else lost[0]
