"""channels_last: the same model with its images and convolutions laid out channel by channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .changed import Changed, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    def back() -> None:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the stub knows no such format

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return as_a_whole(model, "channels_last", back)
