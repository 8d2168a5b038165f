"""The error budget of a replacement that keeps weights as int8.

Identity is not asked of it. What is asked is that it loses no more than its own rounding explains: what one rounding of
every linear weight to its row's int8 grid does to the exact result, with the same multiples, and the same second opinion
by other numbers, as for float dtypes (``harness.rounding``). A wrong scale, a dropped bias or a coarser grid is over it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..exact import exact_mode
from ..properties.base import Property
from ..rounding.calibration import multiple
from ..rounding.statistic import Allowance, Measured, allowances, other_numbers, pooled
from ..trial import Disagreement, Trial, Vacuous, cast

LEVELS = 127.0
"""Steps of a symmetric int8 grid between zero and a row's largest weight."""


def _within_budget(trial: Trial) -> None:
    most = multiple("float32")
    for name, (allowance, measured) in _measured(trial).items():
        ratio = measured.ratio
        if not ratio <= most:
            again = [_measured(trial.on(other)) for other in other_numbers(trial.example)]
            ratio = pooled(one[name][1] for one in again).ratio
        trial.evidence.budgets_used.append(ratio / most)
        if not ratio <= most:
            words = f"{name}: error {measured.error:.1e} of its scale, int8 weights explain {allowance.propagated:.1e}"
            raise Disagreement(f"{words}; {ratio / most:.2g} times the budget", error=measured.error)


def _measured(trial: Trial) -> dict[str, tuple[Allowance, Measured]]:
    inputs = trial.fresh_inputs()
    allowed = allowances(trial.case, trial.original, inputs, trial.example)
    if not allowed:
        raise Vacuous("the original's result is not finite")
    shifted = _exact(trial, inputs)
    outputs = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    found = {}
    for name, allowance in allowed.items():
        wider = replace(allowance, propagated=_rms(shifted[name] - allowance.exact, allowance.valid) / allowance.scale)
        if outputs[name].shape != allowance.exact.shape:
            raise Disagreement(f"{name} is of shape {tuple(outputs[name].shape)}, not {tuple(allowance.exact.shape)}")
        found[name] = (wider, wider.measure(outputs[name]))
    return found


def _exact(trial: Trial, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs in float64 of the original with every linear weight moved by one random rounding to its row's grid."""
    model = copy.deepcopy(trial.original).double()
    generator = torch.Generator().manual_seed(trial.example.seed)
    wide = Inputs(kwargs=cast(inputs.kwargs, torch.float64), valid=inputs.valid)
    with exact_mode():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                step = module.weight.abs().amax(1, keepdim=True) / LEVELS
                module.weight += step * (torch.rand(module.weight.shape, generator=generator) - 0.5)
        return trial.case.run(model, wide)


def _rms(values: Tensor, valid: Tensor | None) -> float:
    values = values if valid is None else values[valid]
    return math.sqrt(float(values.double().square().mean()))


BUDGET = Property(
    name="error budget",
    statement="The error against the exact result stays within what rounding every linear weight to int8 explains.",
    check=_within_budget,
    exact=False,
)
