"""Moves: another dtype and back, with calls in between."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..exact import exact_mode
from ..trial import Disagreement, Trial, cast
from .base import Property, same_outputs
from .lifecycle import same_state

HALVES = (torch.bfloat16, torch.float16)


def _moves(trial: Trial) -> None:
    """float32 to half precision, to float64, where both sides have to agree to the last but few digits."""
    half = HALVES[trial.example.seed % 2]
    original, model = copy.deepcopy(trial.original), trial.replaced.model
    trial.run_replaced(model, trial.fresh_inputs())
    original, model = original.to(half), model.to(half)
    same_state(original, model, f"moved to {half}", strides=False)
    if _original_runs_in(trial, original, half):
        _runs_in(trial, model, half)
    original, model = original.to(torch.float64), model.to(torch.float64)
    same_state(original, model, f"moved to {half} and float64", strides=False)
    inputs = cast(trial.fresh_inputs(), torch.float64)
    with exact_mode():
        expected = trial.case.run(original, inputs)
        actual = trial.run_replaced(model, inputs)
        same_outputs(trial, expected, actual, inputs.valid, f"moved to {half} and float64")


def _original_runs_in(trial: Trial, original: nn.Module, dtype: torch.dtype) -> bool:
    """Not every original does: diffusers' eager attention in float32 takes no mask in half precision."""
    try:
        trial.case.run(original, cast(trial.fresh_inputs(), dtype))
    except RuntimeError:
        return False
    return True


def _runs_in(trial: Trial, model: Any, dtype: torch.dtype) -> None:
    """The replaced model answers in the dtype that it is in. How exactly, the rounding tier judges."""
    for name, output in trial.run_replaced(model, cast(trial.fresh_inputs(), dtype)).items():
        if isinstance(output, Tensor) and output.dtype != dtype:
            raise Disagreement(f"moved to {dtype}, the replaced model's {name} is {output.dtype}")


MOVES = Property(
    name="dtype moves",
    statement="A replaced model that is moved to half precision and on to float64 runs in each, and computes what the "
    "original computes that was moved alike.",
    check=_moves,
    exact=False,
    share=0.05,
)
