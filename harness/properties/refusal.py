"""Match or refuse: a layer that cannot be expressed is left alone, and the reason names the feature."""

from __future__ import annotations

import copy
import warnings

from torch import Tensor, nn

from ..case import Example, Inputs, NotToBeHad, Refusal
from ..numerics import gap
from ..trial import Disagreement, Trial
from .base import Property
from .lifecycle import same_classes, same_state

SAME = 1e-3
"""Relative, in float32: what was changed in a layer doubles something."""


def _refusal(trial: Trial) -> None:
    for refusal in trial.case.refusals():
        try:
            model = refusal.build()
        except NotToBeHad:
            continue
        _refused(trial, refusal, model)
        trial.evidence.refusals.append(refusal.name)


def _refused(trial: Trial, refusal: Refusal, model: nn.Module) -> None:
    untouched = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = trial.replacer(model)
    if handle.replaced:
        where = ", ".join(repr(str(one.path)) for one in handle.replaced if one.path)
        what = f"a model with {refusal.name} was replaced{where and f' ({where})'}"
        if refusal.example is None:
            raise Disagreement(f"{what}; it had to be refused")
        _computes_the_same(trial, refusal.example, untouched, model, what)
        return
    reasons = " ".join(str(one.reason) for one in handle.left)
    if not reasons:
        raise Disagreement(f"a model with {refusal.name} was passed over without a reason")
    if refusal.feature not in reasons and refusal.example is None:
        raise Disagreement(f"a model with {refusal.name} was refused without naming {refusal.feature!r}: {reasons}")
    same_classes(untouched, model, f"after refusing {refusal.name}")
    same_state(untouched, model, f"after refusing {refusal.name}")


def _computes_the_same(trial: Trial, example: Example, original: nn.Module, model: nn.Module, what: str) -> None:
    """Raise where ``model`` gives something else than ``original``, or anything where that cannot run."""
    inputs = trial.case.inputs(example)
    expected, actual = (_outputs(trial, one, inputs) for one in (original, model))
    if (expected is None) != (actual is None):
        runs, other = ("original", "replacement") if actual is None else ("replacement", "original")
        raise Disagreement(f"{what}; the {runs} runs, and the {other} does not")
    for name, tensor in (expected or {}).items():
        if not gap(tensor, (actual or {}).get(name), inputs.valid).within(SAME):
            raise Disagreement(f"{what}; it has to be refused, or to compute what the original does")


def _outputs(trial: Trial, model: nn.Module, inputs: Inputs) -> dict[str, Tensor] | None:
    """None where the model cannot run."""
    try:
        return trial.case.run(model, inputs)
    except Exception:
        return None


REFUSAL = Property(
    name="refusal",
    statement="A layer that the replacement cannot express is refused by name, and nothing is changed.",
    check=_refusal,
    applies=lambda case: bool(case.refusals()),
    exact=False,
    once=True,
    shown_by=("refusals", "no model that has to be refused was tried"),
)
