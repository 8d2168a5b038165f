"""Parameters that let faults show.

Default initialisation hides most mapping faults: zero biases, unit gains, weights of 0.02 that make every attention
uniform. Here gains lie away from one, biases away from zero, and weights are large enough that attention is peaked and a
swapped slot changes the result by far more than any tolerance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .exact import unwatched

GAIN_RANGE = (0.4, 1.8)
BIAS_SPREAD = 0.6
WEIGHT_SPREAD = 1.3
"""Standard deviation of a weight's output over that of its input, times the square root of the fan-in."""
QUIET_ROW = 0.02
"""Scale of the few embedding rows of low variance, in which a norm's eps has weight."""


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter of ``module``, in place, from ``seed`` alone. Returns ``module``.

    Norm gains (of whatever class) are drawn from ``GAIN_RANGE`` with random sign, biases from a normal distribution,
    matrices so that outputs keep the scale of inputs. Float buffers are left alone: those that exist hold constants
    (rotary tables, masks), which no checkpoint varies.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), unwatched():
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    _fill(owner, name, parameter, generator)
    return module


def _fill(owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if isinstance(owner, nn.Embedding):
        parameter.normal_(0.0, 1.0, generator=generator)
        parameter[::5] *= QUIET_ROW
    elif name == "bias":
        parameter.normal_(0.0, BIAS_SPREAD, generator=generator)
    elif parameter.dim() <= 1:
        parameter.uniform_(*GAIN_RANGE, generator=generator)
        parameter.mul_(torch.where(torch.rand(parameter.shape, generator=generator) < 0.25, -1.0, 1.0))
    else:
        # Conv1D keeps (in, out), everything else (out, in, ...): the spread only has to be of the right order.
        fan_in = parameter.shape[0] if type(owner).__name__ == "Conv1D" else math.prod(parameter.shape[1:])
        parameter.normal_(0.0, WEIGHT_SPREAD / math.sqrt(max(fan_in, 1)), generator=generator)
