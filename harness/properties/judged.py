"""One way of calling a model in a dtype, judged: what its original loses there, and what its replacement does."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..case import Inputs
from ..nested import cast
from ..rounding.statistic import DTYPES, Allowance, Measured, Run, allowances
from ..trial import Disagreement, Trial, fused_path

INFERENCE = 16
"""Bit of an example's seed; those below it choose other things."""
Judged = dict[str, tuple[Allowance, Measured]]
"""What was allowed and what was measured of each output; nothing where the original's own result is not finite."""


def judged(trial: Trial, dtype: str, run: Run, inputs: Inputs, *, fused: bool = True) -> Judged:
    """``run`` of both sides in ``dtype``; ``fused`` asks that no layer leaves it to the original."""
    allowed = allowances(run, trial.original.to(DTYPES[dtype]), cast(inputs, DTYPES[dtype]), trial.example)
    if not allowed:
        return {}
    outputs = outputs_in(trial, dtype, run, inputs, fused=fused)
    for name, allowance in allowed.items():
        actual = outputs[name]
        if actual.dtype is not allowance.dtype or actual.shape != allowance.exact.shape:
            raise Disagreement(
                f"{name} is {actual.dtype} of shape {tuple(actual.shape)}, the original's {allowance.dtype} of shape "
                f"{tuple(allowance.exact.shape)}"
            )
    return {name: (allowance, allowance.measure(outputs[name])) for name, allowance in allowed.items()}


def outputs_in(trial: Trial, dtype: str, run: Run, inputs: Inputs, *, fused: bool = True) -> dict[str, Tensor]:
    """Outputs of the replaced model, of every second example in inference mode, as people run it. The original is in ``dtype``
    before a copy of it is replaced."""
    trial.original.to(DTYPES[dtype])
    model = trial.replaced.model
    mode = torch.inference_mode if trial.example.seed & INFERENCE else torch.no_grad
    with fused_path(model) if fused else contextlib.nullcontext(), mode():
        return run(model, cast(inputs, DTYPES[dtype]))
