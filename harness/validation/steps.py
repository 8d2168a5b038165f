"""What is asked of a policy before its replacement is judged: that it reads a layer, and leaves it as it was."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from policies.anatomy import LayerAnatomy
from policies.base import AnatomyPolicy, DSPolicy
from policies.swap import Swap, UnsupportedLayer

from ..case import Example
from ..properties.base import Property, identical
from ..properties.lifecycle import same_classes, same_state
from ..trial import Disagreement, Trial

READING = "reading"
STATEMENT = "The policy matches a layer, reads it (or refuses it by name) and changes nothing."


def reads(policy: type[DSPolicy]) -> Property:
    """The property that ``policy`` reads a layer and changes nothing; the simplest model must not be refused."""

    def check(trial: Trial) -> None:
        if not trial.evidence.expected:
            _reads(trial.on(Example(trial.case.simplest.values, 0)), policy)
        _reads(trial, policy)

    return Property(
        name=READING,
        statement=STATEMENT,
        check=check,
        exact=False,
        share=0.1,
    )


def _reads(trial: Trial, policy: type[DSPolicy]) -> None:
    model = trial.copy()
    before = trial.case.run(trial.original, trial.inputs)
    code = dict(_code_of(model))
    layers = [one for one in model.modules() if policy.matches(one)]
    expected = trial.case.expected(trial.example)
    trial.evidence.expected += expected
    if len(layers) != expected:
        names = ", ".join(policy.layer_classes) or "no class at all"
        raise Disagreement(f"the policy matches {len(layers)} of {expected} layers (layer_classes: {names})")
    for layer in layers:
        _read_one(trial, policy, layer)
    same_classes(trial.original, model, "after reading")
    same_state(trial.original, model, "after reading")
    for path, function in _code_of(model):
        if code.get(path) is not function:
            raise Disagreement(f"after reading: {path} is another function than before")
    identical(before, trial.case.run(model, trial.fresh_inputs()), "after reading")


def _read_one(trial: Trial, policy: type[DSPolicy], layer: nn.Module) -> None:
    try:
        if issubclass(policy, AnatomyPolicy):
            from policies.structure import Structure

            anatomy: Any = policy.read(Structure(layer))
            if not isinstance(anatomy, LayerAnatomy):
                raise Disagreement(f"read() has to return a LayerAnatomy, not a {type(anatomy).__name__}")
        swap: Any = policy.plan(layer)
        if not isinstance(swap, Swap):
            raise Disagreement(f"plan() has to return a policies.swap.Swap, not a {type(swap).__name__}")
    except UnsupportedLayer as refusal:
        if trial.example.values == trial.case.simplest.values:
            raise Disagreement(f"the policy refuses even the simplest model: {refusal}") from None
        trial.evidence.refusals.append(refusal.feature)
    else:
        trial.evidence.replaced += 1


def _code_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The functions of every class of module in ``model``."""
    for cls in {type(one) for one in model.modules()}:
        for name, member in vars(cls).items():
            if inspect.isfunction(member):
                yield f"{cls.__name__}.{name}", member
