"""What an exam is held on: a case's examples, and what the layers in them are made of."""

from __future__ import annotations

from typing import Any

from policies.fused.linear import Projection
from policies.plans import CAPTURED, Plan

from ..case import Case, Example
from ..covering import covering_examples
from ..plans import by_plan
from ..registry import CaseEntry
from ..search import give_random, quiet
from ..trial import Replacer
from .fault import Fault, Traits

SAMPLED = 48
"""Random models from which a case's traits are read."""


def draw(case: Case, number: int, seed: int) -> tuple[Example, ...]:
    """``number`` examples as a search would try them: those that meet every pair of axis values, then random ones."""
    planned = covering_examples(case.axes, seed, number)
    drawn: list[Example] = []
    if number > len(planned):
        give_random(case, number - len(planned), seed, drawn.append)
    return (*planned, *drawn)


def traits_of(case: Case, examples: tuple[Example, ...], replacer: Replacer) -> Traits:
    """The descriptions of the layers in the models of ``examples``, as clean policies read them."""
    return together(case, traits_of_each(case, examples, replacer))


def traits_of_each(case: Case, examples: tuple[Example, ...], replacer: Replacer) -> tuple[Traits, ...]:
    """What the model of each example is made of."""
    return tuple(_traits(case, example, replacer) for example in examples)


def together(case: Case, parts: tuple[Traits, ...]) -> Traits:
    """The traits of a case of which ``parts`` are the examples'."""
    return Traits(
        case=case,
        policies=frozenset().union(*(one.policies for one in parts)),
        layers=tuple(layer for one in parts for layer in one.layers),
        anatomies=tuple(anatomy for one in parts for anatomy in one.anatomies),
        calls=tuple(dict.fromkeys(call for one in parts for call in one.calls)),
        joins=any(one.joins for one in parts),
        by_onednn=any(one.by_onednn for one in parts),
        by_graphs=any(one.by_graphs for one in parts),
    )


def fitting(faults: tuple[Fault, ...], entries: tuple[CaseEntry, ...], plan: str) -> tuple[Fault, ...]:
    """Those of ``faults`` that can matter in a model of any case of ``entries`` that is available, replaced by ``plan``."""
    found: list[Traits] = []
    with quiet(), by_plan(plan) as replacer:
        for entry in entries:
            if entry.unavailable is None:
                case = entry.load()
                with case.surroundings():
                    found.append(traits_of(case, draw(case, SAMPLED, 0), replacer))
    return tuple(one for one in faults if any(map(one.applies, found)))


def _traits(case: Case, example: Example, replacer: Replacer) -> Traits:
    policies, layers, anatomies, calls, joins, by_onednn, by_graphs = set(), [], [], [], False, False, False
    model = case.build(example)
    for one in replacer(model).replaced:
        policies.add(one.policy)
        layer = model.get_submodule(one.path)
        layers.append(layer)
        state: Any = getattr(layer, "fused", None)
        if getattr(state, "core", None) is not None:
            anatomies.append(state.core.anatomy)
            calls.append(state.policy.call)
            joins = joins or _joins(state.core.attention.packed)
            by_onednn = by_onednn or state.execution in (Plan.ONEDNN, Plan.PACKED)
            by_graphs = by_graphs or state.execution in CAPTURED
    return Traits(
        case=case,
        policies=frozenset(policies),
        layers=tuple(layers),
        anatomies=tuple(anatomies),
        calls=tuple(dict.fromkeys(calls)),
        joins=joins,
        by_onednn=by_onednn,
        by_graphs=by_graphs,
    )


def _joins(packed: Projection | None) -> bool:
    """Weights in oneDNN's layout are no storage that parameters could be views of."""
    return packed is not None and (packed.stored is not None or packed.bias is not None)
