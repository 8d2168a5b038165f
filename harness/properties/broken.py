"""Calls that end in the middle: memory runs out, somebody interrupts. The next call must not see what was begun."""

from __future__ import annotations

import random

import torch
from torch import nn

from ..trial import Disagreement, Trial, Vacuous
from .base import Property, same_outputs
from .inputs import other_inputs
from .threads import Stopped, layers_of, watched

BREAKS = 3
"""Calls of an example that are broken off."""


def _broken_off(trial: Trial) -> None:
    """A model's first call, and later ones, each followed by a whole one."""
    chosen = random.Random(trial.example.seed)
    operators = _operators(trial)
    model = trial.replace(trial.copy()).model.requires_grad_(False)
    layers = layers_of(trial, model)
    for number in range(BREAKS):
        at = chosen.randrange(operators)
        _break(trial, model, layers, at, learning=number == 1)
        actual = trial.run_replaced(model, trial.fresh_inputs())
        what = f"after a call that was broken off before operator {at} of {operators}"
        same_outputs(trial, trial.expected_outputs, actual, trial.inputs.valid, what)


def _operators(trial: Trial) -> int:
    """How many operators run inside the layers of a call."""
    model, mode = trial.replaced.model, Stopped()
    with watched(layers_of(trial, model), mode):
        trial.run_replaced(model, trial.fresh_inputs())
    if not mode.seen:
        raise Vacuous("no operator ran inside the layers")
    return mode.seen


def _break(trial: Trial, model: nn.Module, layers: list[nn.Module], at: int, *, learning: bool) -> None:
    """A call with other values that before operator ``at`` runs out of memory, about which a replacement may do something, or is
    interrupted. It is made with gradients on, for whoever is ``learning`` something in front of a frozen model or behind it, and
    leaves them on."""

    def stop() -> None:
        if at % 2:
            raise KeyboardInterrupt
        raise torch.OutOfMemoryError("no memory is left, as far as this call is told")

    with torch.set_grad_enabled(learning):
        try:
            with watched(layers, Stopped(at, stop)):
                trial.case.run(model, other_inputs(trial, 1))
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            if torch.is_grad_enabled() != learning:
                raise Disagreement("an error in a layer leaves gradients otherwise than they were") from None
        except Exception as problem:
            raise Disagreement(f"what was raised in a layer comes out as {type(problem).__name__}: {problem}") from problem


BROKEN = Property(
    name="after an error",
    statement="When a call has ended with an error or an interrupt inside a layer, its first one too, the next gives what the "
    "original gives, and gradients are on where they were.",
    check=_broken_off,
    share=0.03,
)
