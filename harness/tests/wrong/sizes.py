"""Kernels with a bound."""

from __future__ import annotations

from typing import Any

import torch

from ..tiny import Forward, cache_of


def sized_by_first_call(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    if hidden.numel() > state.setdefault("room", hidden.numel()):
        raise RuntimeError("the workspace is too small")
    return own(hidden, *args, **kwargs)


def bounded_table(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What is behind the end of a table of 2,048 positions is at its last."""
    output = own(*args, **kwargs)
    return torch.cat((output[:, :2048], output[:, 2047:2048].expand_as(output[:, 2048:])), dim=1)


def one_length(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """A kernel for a block of 16 and one token more, which is wrong."""
    output = own(hidden, *args, **kwargs)
    return output if hidden.shape[1] != 17 else output.roll(1, dims=1)


def one_split(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Of whole blocks of 64 tokens behind the first four nothing is computed."""
    output = own(hidden, *args, **kwargs)
    whole = hidden.shape[1] % 64 == 0
    return torch.cat((output[:, :256], output[:, 256:] * 0), dim=1) if whole else output


def bounded_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Reads no more than 4,096 keys."""
    output, cache = own(*args, **kwargs), cache_of(kwargs)
    return output if cache is None or cache.get_seq_length() <= 4096 else output.roll(1, dims=-1)


def one_grid(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A block for each head of each row, and rows that no block is left for stay zero."""
    output = own(*args, **kwargs)
    blocks = 65_535 // state["layer"].self_attn.config.num_attention_heads
    return torch.cat((output[:blocks], output[blocks:] * 0))


def four_slots(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """There are four places for what is kept of a layer; the fifth layer takes the last."""
    output = own(*args, **kwargs)
    return output if state["layer"].self_attn.layer_idx < 4 else output.roll(1, dims=-1)


def whole_blocks(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = own(hidden, *args, **kwargs)
    return output if hidden.shape[1] < 32 else output[:, : hidden.shape[1] // 32 * 32]


def whole_rows(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = own(hidden, *args, **kwargs)
    return output if len(hidden) < 8 else output[: len(hidden) // 8 * 8]


def bounded_batch(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = own(hidden, *args, **kwargs)
    return output if len(hidden) <= 64 else torch.cat((output[:64], output[64:] * 0))
