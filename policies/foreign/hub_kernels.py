"""The ``kernels`` library: layers of a model get kernels from the Hub. Written against kernels 0.17; never run, for want of
a GPU (and it downloads what it runs)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changed import Changed, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    from kernels import Mode, kernelize

    return as_a_whole(kernelize(model, mode=Mode.INFERENCE, device="cuda"), "kernels", was=model)
