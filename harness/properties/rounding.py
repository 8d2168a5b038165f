"""Same rounding: in each dtype the replacement stays within its error budget, however it is called (``ways``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from ..covering import chosen_by
from ..rounding.calibration import multiple
from ..rounding.statistic import DTYPES, Allowance, Measured, confirmed, other_numbers
from ..trial import Disagreement, Trial
from .base import Property
from .ways import ways


def _within_budget(dtype: str) -> Callable[[Trial], None]:
    def check(trial: Trial) -> None:
        most = multiple(dtype)
        way = chosen_by(trial.example.seed, ways(trial.case, dtype))
        used = [0.0]
        with _full_precision(trial.case.device):
            judged = way(trial, dtype)
        for name, (allowance, measured) in judged.items():

            def again(name: str = name) -> Iterator[Measured]:
                with _full_precision(trial.case.device):
                    others = [way(trial.on(other), dtype) for other in other_numbers(trial.example)]
                return (one[name][1] for one in others if name in one)

            ratio = confirmed(measured, again, most)
            used.append(ratio / most)
            if not ratio <= most:
                trial.evidence.budgets_used.append(max(used))
                raise Disagreement(_excess(name, allowance, measured, ratio / most), error=measured.error)
        trial.evidence.budgets_used += [max(used)] if judged else []

    return check


def _full_precision(device: str) -> contextlib.AbstractContextManager[None]:
    """cuDNN may round float32 operands to the 10 bits of TF32, and does so where it expects it to be faster: on one side of a
    comparison of tiny images and not on the other."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device == "cuda" else contextlib.nullcontext()


def _excess(name: str, allowance: Allowance, measured: Measured, used: float) -> str:
    own = f"the original's own is {allowance.own:.1e}, rounding its parameters {allowance.propagated:.1e}"
    return f"{name}: error {measured.error:.1e} of its scale ({own}); with other numbers too, {used:.2g} times the budget"


_BESIDES = {
    "float32": ", far from zero, under autocast, in forward mode",
    "bfloat16": ", compiled",
    "float16": ", with outliers, behind thousands of tokens",
}
ROUNDING = tuple(
    Property(
        name=f"rounding {dtype}",
        statement=f"In {dtype}, at every size, in every layout, after other calls and beside one, with a cache, "
        f"with other weights{_BESIDES.get(dtype, '')}, the error against the exact result stays within a calibrated multiple of "
        "what the original's own rounding and one rounding of its parameters cause.",
        check=_within_budget(dtype),
        exact=False,
        share=0.15,
        least=14,
        shown_by=("budgets_used", "in no example did the original run in this dtype with a result to compare"),
        lower=dtype,
    )
    for dtype in DTYPES
)
