"""Comparing outputs: how far apart, at which positions, and whether there is anything there at all.

Errors are relative to the scale of the original's output, its largest absolute value over the positions that count. That
keeps one tolerance for all architectures, and a single large element cannot hide a wrong small one by more than scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_TOLERANCE = 1e-10
"""Largest relative error between two float64 computations of one function. Honest rewrites stand at about 1e-15, the
weakest real fault known at 1e-5."""
COARSE = {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 0.3}
"""Between two computations in a lower dtype: what rounding seldom reaches, and what is asked for and not done is above."""


@dataclass(frozen=True)
class Gap:
    """How far ``actual`` is from ``expected``. ``problem`` says what makes them incomparable, if anything does."""

    error: float
    problem: str | None = None

    def within(self, tolerance: float) -> bool:
        return self.problem is None and self.error <= tolerance


def tolerance_of(expected: Tensor) -> float:
    """The largest relative error of an honest computation of ``expected``, by its dtype."""
    return COARSE.get(expected.dtype, EXACT_TOLERANCE)


def gap(expected: Tensor, actual: object, valid: Tensor | None = None) -> Gap:
    """Compare two outputs at ``valid`` positions ((batch, tokens) bool over the first two dimensions; None: all).

    Positions that do not count must still be finite where the original's are.
    """
    if not isinstance(actual, Tensor):
        return Gap(float("inf"), f"expected a tensor, got {type(actual).__name__}")
    if actual.shape != expected.shape:
        return Gap(float("inf"), f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    if actual.dtype != expected.dtype:
        return Gap(float("inf"), f"expected {expected.dtype}, got {actual.dtype}")
    if actual.device != expected.device:
        return Gap(float("inf"), f"expected a tensor on {expected.device}, got one on {actual.device}")
    if not bool((torch.isfinite(actual) | ~torch.isfinite(expected)).all()):
        return Gap(float("inf"), "not finite where the original is")
    if valid is not None:
        expected, actual = expected[valid], actual[valid]
    if expected.numel() == 0:
        return Gap(0.0)
    scale = float(expected.abs().max())
    error = float((expected - actual).abs().max())
    if scale == 0.0:
        return Gap(0.0 if error == 0.0 else float("inf"))
    return Gap(error / scale)


def alive(outputs: dict[str, Tensor], valid: Tensor | None, whose: str = "original") -> str | None:
    """Why these outputs show nothing (none, not finite, constant), or None if they are alive."""
    if not outputs:
        return "no output was compared"
    for name, output in outputs.items():
        seen = output if valid is None else output[valid]
        if seen.numel() == 0:
            return f"{name} has no position that counts"
        if not bool(torch.isfinite(seen).all()):
            return f"the {whose}'s {name} is not finite"
        if seen.numel() > 1 and bool((seen == seen.flatten()[0]).all()):
            return f"the {whose}'s {name} is constant"
    return None
