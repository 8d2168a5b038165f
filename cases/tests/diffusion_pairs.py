"""Originals of diffusion models beside replaced copies, for tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from harness.case import Case, Example, Inputs
from policies.replace import replace_module

from ..unet import UNetCase
from ..vae import VAECase

UNET, VAE = UNetCase(), VAECase()
CASES = (UNET, VAE)


def example(case: Case, **values: Any) -> Example:
    return Example({**case.simplest.values, **values}, 3)


def pair(case: Case, **values: Any) -> tuple[Any, Any, Inputs]:
    """The original, a replaced copy of it, and inputs."""
    one = example(case, **values)
    original = case.build(one)
    replaced = copy.deepcopy(original)
    replace_module(replaced)
    return original, replaced, case.inputs(one)


def assert_close(mine: dict[str, Tensor], its: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in its.items():
        assert mine[name].dtype == tensor.dtype
        error = (mine[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= tolerance, f"{name} differs by {error}"


def edits() -> dict[str, Any]:
    def exchange(model: Any) -> None:
        attention = next(one for one in model.modules() if type(one).__name__ == "Attention")
        attention.to_k.weight = nn.Parameter(attention.to_k.weight * 2)

    def assign(model: Any) -> None:
        model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()}, assign=True)

    def load(model: Any) -> None:
        model.load_state_dict({name: value.clone() * 0.5 for name, value in model.state_dict().items()})

    def in_place(model: Any) -> None:
        for parameter in model.parameters():
            parameter.mul_(0.9)

    def elsewhere(model: Any) -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.9

    def there_and_back(model: Any) -> None:
        model.double().float()

    def contiguous(model: Any) -> None:
        model.to(memory_format=torch.contiguous_format)

    return {one.__name__: one for one in (exchange, assign, load, in_place, elsewhere, there_and_back, contiguous)}
