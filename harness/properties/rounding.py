"""Same rounding: in each dtype the replacement stays within its error budget."""

from __future__ import annotations

from collections.abc import Callable

from ..case import Inputs
from ..rounding.calibration import multiple
from ..rounding.statistic import DTYPES, Allowance, Measured, allowances, other_numbers, pooled
from ..trial import Disagreement, Trial, cast
from .base import Property


def _within_budget(dtype: str) -> Callable[[Trial], None]:
    def check(trial: Trial) -> None:
        most = multiple(dtype)
        for name, (allowance, measured) in _measured(trial, dtype).items():
            ratio = measured.ratio
            if not ratio <= most:
                again = [_measured(trial.on(other), dtype) for other in other_numbers(trial.example)]
                every = [one[name][1] for one in again if one]
                ratio = pooled(every).ratio if every else 0.0
            trial.evidence.budgets_used.append(ratio / most)
            if not ratio <= most:
                raise Disagreement(_excess(name, allowance, measured, ratio / most), error=measured.error)

    return check


def _measured(trial: Trial, dtype: str) -> dict[str, tuple[Allowance, Measured]]:
    """What was allowed and what was measured of each output; nothing where the original's own result is not finite."""
    original = trial.original.to(DTYPES[dtype])
    allowed = allowances(trial.case, original, _inputs(trial, dtype), trial.example)
    model = trial.replaced.model
    if not allowed:
        return {}
    outputs = trial.run_replaced(model, _inputs(trial, dtype))
    for name, allowance in allowed.items():
        actual = outputs[name]
        if actual.dtype is not DTYPES[dtype] or actual.shape != allowance.exact.shape:
            raise Disagreement(
                f"{name} is {actual.dtype} of shape {tuple(actual.shape)}, the original's {DTYPES[dtype]} of shape "
                f"{tuple(allowance.exact.shape)}"
            )
    return {name: (allowance, allowance.measure(outputs[name])) for name, allowance in allowed.items()}


def _excess(name: str, allowance: Allowance, measured: Measured, used: float) -> str:
    own = f"the original's own is {allowance.own:.1e}, rounding its parameters {allowance.propagated:.1e}"
    return f"{name}: error {measured.error:.1e} of its scale ({own}); with other numbers too, {used:.2g} times the budget"


def _inputs(trial: Trial, dtype: str) -> Inputs:
    """Newly made inputs, in ``dtype``."""
    inputs = trial.fresh_inputs()
    return Inputs(kwargs=cast(inputs.kwargs, DTYPES[dtype]), valid=inputs.valid)


ROUNDING = tuple(
    Property(
        name=f"rounding {dtype}",
        statement=f"In {dtype} the replacement's error against the exact result stays within a calibrated multiple of "
        "what the original's own rounding and one rounding of its parameters cause.",
        check=_within_budget(dtype),
        applies=lambda case: case.layered,
        exact=False,
        share=0.25,
    )
    for dtype in DTYPES
)
