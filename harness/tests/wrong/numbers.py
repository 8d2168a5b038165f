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
