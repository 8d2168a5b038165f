"""How much of its error budget a computation uses on one example.

Notation: f is the model with parameters p and inputs x, both already rounded to the dtype; ``exact`` is f(p, x) in
float64. All errors are root mean squares over the positions that count, divided by the root mean square of ``exact``.

    own         error of the original, computed in the dtype
    propagated  error of f(p(1 + u z), x) in float64, with u the dtype's unit roundoff and z standard normal
    floor       ``FLOOR`` in units of the dtype's epsilon
    allowance   sqrt(own^2 + propagated^2 + floor^2)
    used        error of the replacement / (multiple x allowance)

An example over its budget is asked again with ``CONFIRMATIONS`` other seeds, that is, the same configuration with other
numbers, and counts only if it is over the budget there as well, errors and allowances pooled (root mean square). Honest
excesses come from an original that was lucky with one set of numbers; a careless computation is careless with any. Where the
original's result is finite and the replacement's is not, that is no excess but the result lost, and counts at once.

Why not the original's own error alone: on a tiny model it is a single draw from a wide distribution, and an original
that was lucky would leave an honest replacement no room. ``propagated`` is what one rounding of each parameter does to
the result, so it measures how ill-conditioned the example is, by the same reasoning as backward error analysis (Higham,
Accuracy and Stability of Numerical Algorithms, 2002, chapter 1). The root mean square is used, and not the largest
error, because its ratio has the shorter tail.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..case import Example, Inputs
from ..exact import exact_mode
from ..nested import cast
from ..numerics import alive
from ..trial import OriginalFailed, original_side

Run = Callable[[nn.Module, Inputs], dict[str, Tensor]]
"""One call of a model or several, and every output by name; positions are dimension 1."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOOR = 0.25
"""In units of the dtype's epsilon. Below this an error is that of rounding the output itself."""
CONFIRMATIONS = 4
"""Other seeds that have to confirm an excess."""


@dataclass(frozen=True)
class Measured:
    """Error of one output and what was allowed for it."""

    error: float
    allowed: float

    @property
    def ratio(self) -> float:
        return self.error / self.allowed


def pooled(measured: Iterable[Measured]) -> Measured:
    """Root mean squares of errors and allowances."""
    every = tuple(measured)
    return Measured(
        math.sqrt(sum(one.error**2 for one in every) / len(every)),
        math.sqrt(sum(one.allowed**2 for one in every) / len(every)),
    )


def confirmed(first: Measured, again: Callable[[], Iterable[Measured]], most: float) -> float:
    """The ratio that counts where an output was first measured so: one above ``most`` is asked ``again`` with other numbers. What
    is lost to NaN or infinity is no bad luck, and is not asked about again; and where nothing could be measured with other
    numbers, what was measured stands."""
    if first.ratio <= most or not math.isfinite(first.error):
        return first.ratio
    others = tuple(again())
    return pooled(others).ratio if others else first.ratio


def other_numbers(example: Example) -> tuple[Example, ...]:
    """The same configuration with other weights and inputs."""
    return tuple(Example(example.values, (example.seed + 1 + i) % 2**16) for i in range(CONFIRMATIONS))


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What the original leaves room for on one output, relative to the output's own root mean square."""

    exact: Tensor
    dtype: torch.dtype
    """Of the original's own output."""
    valid: Tensor | None
    scale: float
    own: float
    propagated: float
    floor: float

    @property
    def total(self) -> float:
        return math.sqrt(self.own**2 + self.propagated**2 + self.floor**2)

    def error(self, actual: Tensor) -> float:
        """Relative error of ``actual`` against the exact result; infinite where it is not finite."""
        error = rms(actual.double() - self.exact, self.valid) / self.scale
        return error if math.isfinite(error) else math.inf

    def measure(self, actual: Tensor) -> Measured:
        return Measured(self.error(actual), self.total)


def allowances(run: Run, model: nn.Module, inputs: Inputs, example: Example) -> dict[str, Allowance]:
    """The allowance of each output of ``run``, for ``model``, an original already in its dtype, on ``inputs`` in the same dtype.

    Empty where the original's own result is not finite or constant, or where it cannot run in a half precision at all
    (an operator that is missing there, operands of two dtypes): such an example asks nothing of a replacement. Call it
    inside the case's surroundings. Raises ``OriginalFailed``.
    """
    dtype = next(model.parameters()).dtype
    try:
        with original_side(f"in {dtype}"), torch.no_grad():
            own = run(model, inputs)
    except OriginalFailed:
        if dtype is torch.float32:
            raise
        return {}
    exact, shifted = _exact_outputs(run, model, inputs, example, dtype)
    if alive(own, inputs.valid) is not None or alive(exact, inputs.valid) is not None:
        return {}
    eps = torch.finfo(dtype).eps
    found = {}
    for name, tensor in exact.items():
        valid = inputs.valid if tensor.dim() > 1 else None
        scale = rms(tensor, valid)
        found[name] = Allowance(
            exact=tensor,
            dtype=own[name].dtype,
            valid=valid,
            scale=scale,
            own=rms(own[name].double() - tensor, valid) / scale,
            propagated=rms(shifted[name] - tensor, valid) / scale,
            floor=FLOOR * eps,
        )
    return found


def _exact_outputs(
    run: Run, model: nn.Module, inputs: Inputs, example: Example, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs in float64 of ``model``, and of ``model`` with each parameter moved by about one rounding."""
    wide = copy.deepcopy(model).double()
    wide_inputs = cast(inputs, torch.float64)
    generator = torch.Generator().manual_seed(example.seed)
    with original_side("in float64"), exact_mode():
        exact = run(wide, wide_inputs)
        for parameter in wide.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.mul_(1.0 + torch.finfo(dtype).eps / 2 * noise)
        return exact, run(wide, wide_inputs)


def rms(values: Tensor, valid: Tensor | None = None) -> float:
    """Root mean square of ``values`` at the positions that count."""
    if valid is not None:
        values = values[valid]
    return float(values.double().square().mean().sqrt())
