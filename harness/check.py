"""Judging policies: each property on each case becomes a verdict with its evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from policies import replace_module
from reports.record import ErrorBudget, Failure, Verdict

from .case import Axis, Case, Example
from .coverage import Drawn, Pair
from .evidence.gather import Explanation, gather
from .numerics import EXACT_TOLERANCE
from .profiles import Profile
from .properties import Property
from .rounding.calibration import multiple
from .rounding.statistic import FLOOR
from .search import Found, search
from .trial import Disagreement, Replacer, ran_out_of_memory


@dataclass(frozen=True)
class Checked:
    """The verdict on one property of one case, which axis values its examples had, for a property of the rounding tier what
    was used of the error budget, and whether there is no verdict because the original raised."""

    verdict: Verdict
    drawn: Drawn = field(default_factory=Counter)
    pairs: frozenset[Pair] = frozenset()
    budget: ErrorBudget | None = None
    original_raised: bool = False


def check_property(
    prop: Property,
    case: Case,
    *,
    profile: Profile,
    seed: int,
    policy: str,
    replacer: Replacer = replace_module,
    explain: bool = True,
) -> Checked:
    """Judge ``prop`` on ``case`` to the depth of ``profile``. ``explain`` gathers evidence on a failure, which takes
    about as long as a hundred examples."""
    examples = profile.examples_of(prop.share, case.effort, prop.least)
    found = search(prop, case, replacer, examples=examples, seed=seed)
    outcome, reason = _outcome(found, prop)
    verdict = Verdict(
        case=case.name,
        policy=policy,
        property=prop.name,
        statement=prop.statement,
        outcome=outcome,
        reason=reason,
        examples=found.examples,
        refused=found.refused,
        refusals=dict(found.refusals),
        layers_replaced=found.replaced,
        layers_expected=found.expected,
        worst_error=found.worst_error if prop.exact else None,
        tolerance=EXACT_TOLERANCE if prop.exact else None,
        seconds=found.seconds,
        seed=seed,
        failure=_failure(found, prop, case, replacer if explain else None),
    )
    raised = found.failure is None and found.original_raised
    return Checked(verdict, found.drawn, frozenset(found.pairs), _budget(found, prop, case, policy), raised)


def _left_out(not_asked: Mapping[str, str]) -> str:
    """What was not asked, by why."""
    by_why: dict[str, list[str]] = {}
    for what, why in not_asked.items():
        by_why.setdefault(why, []).append(what)
    reasons = "; ".join(f"{', '.join(whats)} ({why})" for why, whats in by_why.items())
    return f"not asked: {reasons}" if reasons else ""


def _outcome(found: Found, prop: Property) -> tuple[Any, str]:
    if found.failure is not None:
        return "error" if ran_out_of_memory(found.failure[1]) else "failed", _message(found)
    if found.original_failed is not None:
        example, why = found.original_failed
        return ("error" if found.original_raised else "vacuous"), f"{why} [{example}]"
    if found.examples == 0:
        return ("unavailable", "; ".join(found.not_asked.values())) if found.not_asked else ("vacuous", "no example was run")
    if not prop.once and found.replaced == 0:
        return "vacuous", "no layer was replaced in any example"
    if prop.shown_by is not None:
        evidence, lacking = prop.shown_by
        if not getattr(found, evidence):
            return "vacuous", lacking
    return "held", _left_out(found.not_asked)


def _message(found: Found) -> str:
    assert found.failure is not None
    problem = found.failure[1]
    text = str(problem) if isinstance(problem, Disagreement) else f"{type(problem).__name__}: {problem}"
    text = text.splitlines()[0] if text else type(problem).__name__
    return f"{text} (not the same from run to run)" if found.flaky else text


def _failure(found: Found, prop: Property, case: Case, replacer: Replacer | None) -> Failure | None:
    """The failure with its evidence; without any where there is no ``replacer`` to ask."""
    if found.failure is None:
        return None
    example, problem = found.failure
    error = problem.error if isinstance(problem, Disagreement) else None
    evidence = Explanation() if replacer is None else gather(prop, case, example, replacer)
    return Failure(
        id=f"{case.name}/{prop.name.replace(' ', '-')}",
        message=_message(found),
        example=in_words(example, case.axes),
        off_simplest=off_simplest(example, case.axes),
        nearest_passing=None if evidence.nearest is None else in_words(evidence.nearest, case.axes),
        error=error if error is not None and error < float("inf") else None,
        stages=evidence.stages,
        script=evidence.script,
        traceback=found.failing_traceback,
        notes=evidence.missing,
    )


def _budget(found: Found, prop: Property, case: Case, policy: str) -> ErrorBudget | None:
    if prop.lower is None or not found.budgets_used:
        return None
    return ErrorBudget(
        case=case.name,
        policy=policy,
        dtype=prop.lower,
        examples=len(found.budgets_used),
        used_median=median(found.budgets_used),
        used_worst=max(found.budgets_used),
        multiple=multiple(prop.lower),
        floor=FLOOR,
    )


def off_simplest(example: Example, axes: Iterable[Axis]) -> tuple[str, ...]:
    """Names of the axes whose value in ``example`` is not the simplest."""
    return tuple(axis.name for axis in axes if example[axis.name] != axis.simplest)


def in_words(example: Example, axes: tuple[Axis, ...]) -> dict[str, str]:
    """Axis by axis, those off their simplest value first."""
    off = off_simplest(example, axes)
    names = [*off, *(axis.name for axis in axes if axis.name not in off)]
    return {name: str(example[name]) for name in names} | {"seed": str(example.seed)}
