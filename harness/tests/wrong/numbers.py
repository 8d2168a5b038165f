"""Other numbers than the original's."""

from __future__ import annotations

from typing import Any

import torch

from ..tiny import Forward


def unchanged(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs)


def slightly_off(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs) * (1 + 1e-6)


def leaks_rows(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output + 1e-6 * output.mean(0, keepdim=True)


def leaks_tokens(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output + 1e-6 * output.mean(1, keepdim=True)


def reads_new_memory(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output * 2 if bool(torch.empty(64).isnan().all()) else output


def single_precision(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs).to(torch.float32)


def rounds_as_configured(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output, dtype = own(*args, **kwargs), state["layer"].self_attn.config.dtype
    return output if dtype is None else output.to(dtype).to(output.dtype)


def half_the_digits(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output.to(torch.float32).to(output.dtype)


def lower_since_autocast(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Weights that were cast for autocast are kept."""
    output = own(*args, **kwargs)
    state["cast"] = state.get("cast", False) or torch.is_autocast_enabled("cpu")
    return output.to(torch.bfloat16).to(output.dtype) if state["cast"] else output


def asks_for_versions(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Sees by them whether a weight was changed in place; what was made in inference mode has none."""
    state["versions"] = [one._version for one in state["layer"].parameters()]
    return own(*args, **kwargs)
