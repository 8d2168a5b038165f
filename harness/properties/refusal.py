"""Match or refuse: a layer that cannot be expressed is left alone, and the reason names the feature."""

from __future__ import annotations

import copy
import warnings

from ..case import Refusal
from ..trial import Disagreement, Trial
from .base import Property
from .lifecycle import same_classes, same_state


def _refusal(trial: Trial) -> None:
    for refusal in trial.case.refusals():
        _refused(trial, refusal)
        trial.evidence.refusals.append(refusal.name)


def _refused(trial: Trial, refusal: Refusal) -> None:
    model = refusal.build()
    untouched = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = trial.replacer(model)
    if handle.replaced:
        where = ", ".join(repr(str(one.path)) for one in handle.replaced if one.path)
        raise Disagreement(f"a model with {refusal.name} was replaced{where and f' ({where})'}; it had to be refused")
    reasons = " ".join(str(one.reason) for one in handle.left)
    if not reasons:
        raise Disagreement(f"a model with {refusal.name} was passed over without a reason")
    if refusal.feature not in reasons:
        raise Disagreement(f"a model with {refusal.name} was refused without naming {refusal.feature!r}: {reasons}")
    same_classes(untouched, model, f"after refusing {refusal.name}")
    same_state(untouched, model, f"after refusing {refusal.name}")


REFUSAL = Property(
    name="refusal",
    statement="A layer that the replacement cannot express is refused by name, and nothing is changed.",
    check=_refusal,
    applies=lambda case: bool(case.refusals()),
    exact=False,
    once=True,
)
