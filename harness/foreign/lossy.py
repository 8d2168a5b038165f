"""The error budgets of replacements that round linear layers to int8: their weights, or their inputs as well.

Identity is not asked of them. What is asked is that they lose no more than their own rounding explains, with the same
multiples, and the same second opinion by other numbers, as for float dtypes (``harness.rounding``). A wrong scale, a
dropped bias or a coarser grid is over it.

Where the budget comes from. A row of weights, or a token's input, of largest entry m is kept as integers q, |q| <= 127,
with one step s = m / 127 for the row, and each entry is moved by s e with |e| <= 1/2. The product of a token x with a row w
becomes

    (x + s_x e_x) . (w + s_w e_w) = x.w + s_w x.e_w + s_x w.e_x + O(s_x s_w)

and nothing else is lost: the integers' products are added without rounding (127^2 n < 2^31 for rows of up to 133,000), and
what is then multiplied by s_x s_w in float32 is allowed for as float32's own error. So the model is run in float64 with
e_w and e_x drawn from [-1/2, 1/2], e_w once for the call and e_x at every linear layer anew; how far its outputs move is the
budget. Later layers see what earlier ones lost, as they do in the replacement. Zero is on every grid and stays zero: half
of what an MLP with a ReLU multiplies is not rounded at all. Weights alone: e_x = 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..exact import exact_mode
from ..nested import cast
from ..properties.base import Property
from ..rounding.calibration import multiple
from ..rounding.statistic import Allowance, Measured, allowances, confirmed, other_numbers, rms
from ..trial import Disagreement, Trial, Vacuous

LEVELS = 127.0
"""Steps of a symmetric int8 grid between zero and a row's largest entry."""


def _weights(trial: Trial) -> None:
    _within_budget(trial, inputs=False)


def _weights_and_inputs(trial: Trial) -> None:
    _within_budget(trial, inputs=True)


def _within_budget(trial: Trial, *, inputs: bool) -> None:
    most = multiple("float32")
    for name, (allowance, measured) in _measured(trial, inputs).items():

        def again(name: str = name) -> list[Measured]:
            return [_measured(trial.on(other), inputs)[name][1] for other in other_numbers(trial.example)]

        ratio = confirmed(measured, again, most)
        trial.evidence.budgets_used.append(ratio / most)
        if not ratio <= most:
            rounding = "int8 weights and inputs" if inputs else "int8 weights"
            words = f"{name}: error {measured.error:.1e} of its scale, {rounding} explain {allowance.propagated:.1e}"
            raise Disagreement(f"{words}; {ratio / most:.2g} times the budget", error=measured.error)


def _measured(trial: Trial, inputs: bool) -> dict[str, tuple[Allowance, Measured]]:
    given = trial.fresh_inputs()
    allowed = allowances(trial.case.run, trial.original, given, trial.example)
    if not allowed:
        raise Vacuous("the original's result is not finite")
    shifted = _rounded(trial, given, inputs)
    outputs = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    found = {}
    for name, allowance in allowed.items():
        wider = replace(allowance, propagated=rms(shifted[name] - allowance.exact, allowance.valid) / allowance.scale)
        if outputs[name].shape != allowance.exact.shape:
            raise Disagreement(f"{name} is of shape {tuple(outputs[name].shape)}, not {tuple(allowance.exact.shape)}")
        found[name] = (wider, wider.measure(outputs[name]))
    return found


def _rounded(trial: Trial, given: Inputs, inputs: bool) -> dict[str, Tensor]:
    """Outputs in float64 of the original with every linear weight, and input where asked, moved by one random rounding."""
    model = copy.deepcopy(trial.original).double()
    generator = torch.Generator().manual_seed(trial.example.seed)
    wide = cast(given, torch.float64)
    with exact_mode():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight += _rounding(module.weight, generator)
                if inputs:
                    module.register_forward_pre_hook(_rounding_inputs(generator))
        return trial.case.run(model, wide)


def _rounding_inputs(generator: torch.Generator) -> Callable[[nn.Module, Any], Tensor]:
    """A hook for a linear layer, which moves its input, of shape (..., width), by one rounding a token."""

    def hook(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0] + _rounding(args[0], generator)

    return hook


def _rounding(rows: Tensor, generator: torch.Generator) -> Tensor:
    """What a random rounding of each row of ``rows`` to its own grid adds; nothing to zeros."""
    step = rows.abs().amax(-1, keepdim=True) / LEVELS
    return step * (torch.rand(rows.shape, generator=generator) - 0.5) * (rows != 0)


BUDGET = Property(
    name="error budget",
    statement="The error against the exact result stays within what rounding every linear weight to int8 explains.",
    check=_weights,
    exact=False,
)
INPUTS_BUDGET = Property(
    name="error budget with inputs",
    statement="The error against the exact result stays within what rounding every linear weight and input to int8 explains.",
    check=_weights_and_inputs,
    exact=False,
)
