"""Moves: another dtype and back, with calls in between."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..exact import exact_mode
from ..nested import cast
from ..rounding.statistic import Run
from ..trial import Disagreement, Trial, fused_path
from .base import Property, relation_holds, same_outputs
from .lifecycle import same_state
from .sizes import call_or_steps

HALVES = (torch.bfloat16, torch.float16)


def _moves(trial: Trial) -> None:
    """float32, where not each replacement is called, to half precision, to float32 again and to float64, where both sides have to
    agree to the last but few digits. What is remembered of the first dtype only shows where another one has more digits, and
    in float64 exact mode hides what asks for fewer."""
    seed = trial.example.seed
    half = HALVES[seed % 2]
    run, words = call_or_steps(trial, steps=seed % 4 > 0)
    if seed % 16 < 8:
        _as_loaded_in(half, trial.original)
    original, model = copy.deepcopy(trial.original), trial.replaced.model
    if seed % 8 < 4:
        with fused_path(model):
            run(model, trial.fresh_inputs())
    original, model = original.to(half), model.to(half)
    same_state(original, model, f"moved to {half}", strides=False)
    _says_the_same(original, model, f"moved to {half}")
    if trial.asked(f"in {half}", lambda: run(original, cast(trial.fresh_inputs(), half))) is not None:
        _runs_in(run, trial, model, half)  # not every original does
    original, model = original.to(torch.float32), model.to(torch.float32)
    _alike(run, trial, original, model, f"moved to {half} and float32{words}")
    original, model = original.to(torch.float64), model.to(torch.float64)
    same_state(original, model, f"moved to {half} and float64", strides=False)
    with exact_mode():
        exact = _alike(run, trial, original, model, f"moved to {half} and float64{words}")
    if seed % 3 == 0:
        _in_plain_float64(run, trial, original, model, exact, f"moved to {half} and plain float64{words}")


def _as_loaded_in(dtype: torch.dtype, model: nn.Module) -> None:
    """Configurations go on naming the dtype that a checkpoint was loaded in, whatever its model is moved to."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "dtype"):
            config.dtype = dtype


def _in_plain_float64(run: Run, trial: Trial, original: nn.Module, model: Any, exact: dict[str, Tensor], what: str) -> None:
    """Without exact mode, which widens what asks for fewer digits; asked where the original itself has them all."""
    inputs = cast(trial.fresh_inputs(), torch.float64)
    expected = trial.asked("in plain float64", lambda: run(original, inputs))
    if expected is None or not all(relation_holds(exact[name], one, inputs.valid) for name, one in expected.items()):
        return
    with fused_path(model):
        actual = run(model, inputs)
    same_outputs(trial, expected, actual, inputs.valid, what)


def _says_the_same(original: Any, model: Any, what: str) -> None:
    """Raise unless ``model`` names the dtype and device, where an original does, that its caller then makes inputs for."""
    for name in ("dtype", "device"):
        if getattr(original, name, None) != getattr(model, name, None):
            raise Disagreement(f"{what}, the model's {name} is {getattr(model, name)}, the original's {getattr(original, name)}")


def _runs_in(run: Run, trial: Trial, model: Any, dtype: torch.dtype) -> None:
    """The replaced model answers in the dtype that it is in. How exactly, the rounding tier judges."""
    with fused_path(model):
        outputs = run(model, cast(trial.fresh_inputs(), dtype))
    for name, output in outputs.items():
        if isinstance(output, Tensor) and output.dtype != dtype:
            raise Disagreement(f"moved to {dtype}, the replaced model's {name} is {output.dtype}")


def _alike(run: Run, trial: Trial, original: nn.Module, model: Any, what: str) -> dict[str, Tensor]:
    """What the original gives. Raise unless both sides, which are of one dtype, give the same by now."""
    inputs = cast(trial.fresh_inputs(), next(original.parameters()).dtype)
    expected = run(original, inputs)
    with fused_path(model):
        actual = run(model, inputs)
    same_outputs(trial, expected, actual, inputs.valid, what)
    return expected


MOVES = Property(
    name="dtype moves",
    statement="A replaced model that is moved to half precision, back and on to float64 runs in each, says so, and computes, "
    "decoding too, what the original computes that was moved alike, whatever dtype its configuration names and in all digits.",
    check=_moves,
    exact=False,
    share=0.05,
)
