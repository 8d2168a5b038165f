"""What two columns must show before they are timed against each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..numerics import gap
from ..trial import Disagreement, fused_path, storages
from .columns import Column

EQUALITY = {"float32": 1e-4, "float32 with TF32": 1e-2, "bfloat16": 6e-2, "float16": 1e-2}
"""Largest error, relative to the output's scale, at which two columns of one dtype count as the same computation.

This is a gate against timing a wrong result, not a judgement of rounding: the rounding tier makes that.
"""


class NotTimed(Exception):
    """Two columns must not be timed against each other. One line that says why."""


def kind_of_equality(dtype: str, device: str, *, images: bool) -> str:
    """The entry of ``EQUALITY`` for two columns of ``dtype``: on CUDA cuDNN may round float32 images to TF32's 10 bits."""
    tf32 = images and dtype == "float32" and device == "cuda" and torch.backends.cudnn.allow_tf32
    return "float32 with TF32" if tf32 else dtype


def show_equal(expected: Tensor, baseline: Column, subject: Column, equality: str) -> float:
    """The subject's error against ``expected``, relative to the output's scale; ``equality`` is an entry of ``EQUALITY``.

    Raises ``NotTimed`` where nothing was replaced, the fused path does not run, the columns are not two separate models, or
    one of them does not give ``expected``.
    """
    if subject.replaced == 0:
        raise NotTimed("no layer was replaced: there is nothing to time")
    if _share(baseline.module, subject.module):
        raise NotTimed(f"{baseline.name} and {subject.name} are not separate models: a thing would be timed against itself")
    try:
        with fused_path(subject.module):
            mine = subject.output() if subject.plain is None else subject.plain()
    except Disagreement as problem:
        raise NotTimed(str(problem)) from None
    if subject.plain is not None:
        mine = subject.output()
    for column, output in ((baseline, baseline.output()), (subject, mine)):
        difference = gap(expected, output)
        if not difference.within(EQUALITY[equality]):
            what = difference.problem or f"differs by {difference.error:.1e} of the output's scale"
            raise NotTimed(f"{column.name} does not compute the same: {what}")
    return difference.error


def _share(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have a module or any memory in common."""
    return not set(one.modules()).isdisjoint(other.modules()) or not storages(one).keys().isdisjoint(storages(other))
