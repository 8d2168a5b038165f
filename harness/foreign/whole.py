"""Replacements of a whole model, judged by the harness's own properties: exactly where they claim to be lossless, by an
error budget where they do not."""

from __future__ import annotations

import time

from policies.foreign.catalogue import Adapter

from ..case import Case
from ..properties.base import Property
from ..properties.calls import INTERLEAVED, ORDER, REPEAT, SHAPES
from ..properties.equality import MODEL_EQUALITY
from .domain import Domain, Limit, as_one, explore, refusing
from .lossy import BUDGET, INPUTS_BUDGET
from .report import Defect, Judged
from .words import example_words, some

LOSSLESS = (MODEL_EQUALITY, REPEAT, SHAPES, ORDER, INTERLEAVED)
FEWER = {MODEL_EQUALITY.name: 1.0, BUDGET.name: 1.0, INPUTS_BUDGET.name: 1.0}
"""Share of the examples for a property; a tenth for those not listed."""


def asked_of(adapter: Adapter) -> tuple[Property, ...]:
    """What ``adapter`` is held to, by what it says of itself."""
    if not adapter.lossy:
        return LOSSLESS
    return (INPUTS_BUDGET,) if adapter.rounds_inputs else (BUDGET,)


def judge_whole(adapter: Adapter, case: Case, *, examples: int, seed: int) -> Judged:
    """The verdict on ``adapter`` on one case. A limit that one property finds holds for the next."""
    started = time.perf_counter()
    inside = as_one(case)
    domains: dict[str, Domain] = {}
    for prop in asked_of(adapter):
        wanted = max(2, round(examples * FEWER.get(prop.name, 0.1) / max(min(case.effort, 3.0), adapter.effort)))
        domains[prop.name] = explore(prop, inside, refusing(adapter.replace), examples=wanted, seed=seed)
        inside = domains[prop.name].inside or inside
        if domains[prop.name].problem or domains[prop.name].nothing:
            break
    limits = [(name, limit) for name, domain in domains.items() for limit in domain.limits]
    defects = [_defect(adapter, case, name, limit) for name, limit in limits if not limit.refused]
    nothing = next((one.nothing for one in domains.values() if one.nothing), "")
    if nothing:
        defects.append(Defect(id=f"{adapter.name}/{case.name}/nothing", what=nothing, silent=True, example=""))
    problem = next((f"{name}: {one.problem}" for name, one in domains.items() if one.problem), "")
    return Judged(
        policy=case.name,
        layer=case.title,
        cells={name: _cell(domain) for name, domain in domains.items()},
        verdict=problem or nothing or _holds(limits),
        proven=sum(domain.examples for domain in domains.values() if not domain.problem),
        refused="; ".join(
            f"{limit.axis} = {some(map(str, limit.failing))}: {limit.message}" for _, limit in limits if limit.refused
        ),
        defects=tuple(defects),
        seconds=round(time.perf_counter() - started, 1),
        lost=bool(problem),
    )


def _holds(limits: list[tuple[str, Limit]]) -> str:
    wrong = some(dict.fromkeys(limit.axis for _, limit in limits if not limit.refused))
    return f"holds but for {wrong}" if wrong else "holds"


def _cell(domain: Domain) -> str:
    if domain.problem or domain.nothing:
        return "FAILED" if domain.problem else "nothing done"
    return f"held on {domain.examples}"


def _defect(adapter: Adapter, case: Case, prop: str, limit: Limit) -> Defect:
    return Defect(
        id=f"{adapter.name}/{case.name}/{prop}/{limit.axis}".replace(" ", "-"),
        what=f"{limit.message} (at {limit.axis} = {some(str(one) for one in limit.failing)})",
        silent=not limit.raised,
        example=example_words(limit.example, case.axes),
        error=limit.error,
    )
