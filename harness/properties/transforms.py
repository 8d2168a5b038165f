"""Function transforms of ``torch.func``: other weights for a single call, derivatives in forward mode, several models at once.

A kernel that has no rule for one of them mostly passes a value on and loses what the transform carries along with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..case import Inputs
from ..rounding.statistic import Run
from ..trial import Trial, original_side
from .base import Property, same_outputs

Weights = dict[str, Tensor]


class _Called(nn.Module):
    """A model whose forward is a case's run: it is ``forward`` that ``functional_call`` calls."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        return self.run(self.model, inputs)


def weights_of(model: nn.Module) -> Weights:
    """The parameters of ``model`` as plain tensors, by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def tangents(run: Run) -> Run:
    """``run`` that returns the derivative of each output beside it: along all parameters at once, each in the direction of its
    own values moved on by one, which every dtype can hold."""

    def derived(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own = weights_of(model)
        both: Any = torch.func.jvp(lambda weights: call_with(weights, run, model, inputs), (own,), (_moved(own),))
        outputs, along = both
        return outputs | {f"{name}'s tangent": tangent for name, tangent in along.items()}

    return derived


def call_with(weights: Weights, run: Run, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """``run`` of ``model`` with ``weights`` in place of its own, for this call alone."""
    # torch's attention kernels have no derivative in forward mode; what they consist of has.
    with sdpa_kernel(SDPBackend.MATH):
        named = {f"model.{name}": weight for name, weight in weights.items()}
        outputs: dict[str, Tensor] = torch.func.functional_call(_Called(model, run), named, (inputs,))
    return outputs


def _moved(weights: Weights) -> Weights:
    return {name: weight.roll(1) for name, weight in weights.items()}


def _stacked(run: Run) -> Run:
    """``run`` of two models in one call: the model, and one with other weights."""

    def both(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own = weights_of(model)
        weights = {name: torch.stack((weight, weight.roll(1))) for name, weight in own.items()}
        mapped = torch.func.vmap(lambda one: call_with(one, run, model, inputs), randomness="same")
        return {name: tensor.flatten(0, 1) for name, tensor in mapped(weights).items()}

    return both


def _with_other_weights(run: Run) -> Run:
    def other(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own = weights_of(model)
        return call_with(_moved(own), run, model, inputs)

    return other


def _of_its_parameters(run: Run) -> Run:
    """The parameters themselves are differentiated, which nobody has read before."""

    def differentiated(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own: Weights = dict(model.named_parameters())
        outputs: dict[str, Tensor] = torch.func.vjp(lambda weights: call_with(weights, run, model, inputs), own)[0]
        return outputs

    return differentiated


TRANSFORMS: dict[str, Callable[[Run], Run]] = {
    "other weights for one call": _with_other_weights,
    "derivatives of its own parameters": _of_its_parameters,
    "derivatives in forward mode": tangents,
    "two models in one call": _stacked,
}


def _transforms(trial: Trial) -> None:
    """Not every original can be transformed. A replacement may run its original's code; it has to say what that says.

    Models of their own for each: those of transformers keep tensors that are of no use outside a transform.
    """
    for what, transformed in TRANSFORMS.items():
        run = transformed(trial.case.run)
        original, model = trial.copy(), trial.replace(trial.copy()).model
        trial.run_replaced(model, trial.fresh_inputs())
        expected = trial.asked(what, partial(run, original, trial.fresh_inputs()))
        if expected is None:
            continue
        same_outputs(trial, expected, run(model, trial.fresh_inputs()), _positions(trial, what), what)
        with original_side(f"after {what}"):
            expected = trial.case.run(original, trial.fresh_inputs())
        actual = trial.run_replaced(model, trial.fresh_inputs())
        same_outputs(trial, expected, actual, trial.inputs.valid, f"a call after {what}")


def _positions(trial: Trial, what: str) -> Tensor | None:
    valid = trial.inputs.valid
    return torch.cat((valid, valid)) if valid is not None and TRANSFORMS[what] is _stacked else valid


TRANSFORMED = Property(
    name="function transforms",
    statement="Under torch.func, with other weights for one call, differentiated by its own, in forward mode and mapped over the "
    "weights of two models, the replacement gives what the original gives.",
    check=_transforms,
    share=0.05,
)
