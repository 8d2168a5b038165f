"""Same rounding: in each dtype the replacement stays within its error budget."""

from __future__ import annotations

from collections.abc import Callable

from ..case import Inputs
from ..rounding.calibration import multiple
from ..rounding.statistic import DTYPES, allowances
from ..trial import Disagreement, Trial, cast
from .base import Property


def _within_budget(dtype: str) -> Callable[[Trial], None]:
    def check(trial: Trial) -> None:
        original = trial.original.to(DTYPES[dtype])
        allowed = allowances(trial.case, original, _inputs(trial, dtype), trial.example)
        model = trial.replaced.model
        if not allowed:
            return
        outputs = trial.run_replaced(model, _inputs(trial, dtype))
        for name, allowance in allowed.items():
            actual = outputs[name]
            if actual.dtype is not DTYPES[dtype] or actual.shape != allowance.exact.shape:
                raise Disagreement(f"{name} is {tuple(actual.shape)} {actual.dtype}, the original's is of {dtype}")
            used = allowance.ratio(actual) / multiple(dtype)
            trial.evidence.budgets_used.append(used)
            if not used <= 1.0:
                error = allowance.error(actual)
                own = f"the original's own is {allowance.own:.1e}, rounding its parameters {allowance.propagated:.1e}"
                raise Disagreement(f"{name}: error {error:.1e} of its scale, {used:.2g} budgets ({own})", error=error)

    return check


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
        exact=False,
        share=0.25,
    )
    for dtype in DTYPES
)
