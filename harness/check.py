"""Judging policies: each property on each case becomes a verdict with its evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from policies import replace_module
from reports.record import Coverage, Failure, Verdict

from .case import Axis, Case, Example
from .numerics import EXACT_TOLERANCE
from .profiles import Profile
from .properties import PROPERTIES, Property
from .search import Found, search
from .trial import Disagreement, Replacer


@dataclass(frozen=True)
class Checked:
    """The verdict on one property of one case, and which axis values its examples had."""

    verdict: Verdict
    drawn: Counter[tuple[str, Any]] = field(default_factory=Counter)
    pairs: frozenset[tuple[str, Any, str, Any]] = frozenset()


def check_property(
    prop: Property,
    case: Case,
    *,
    profile: Profile,
    seed: int,
    policy: str,
    replacer: Replacer = replace_module,
    database: str | None = None,
) -> Checked:
    """Judge ``prop`` on ``case`` to the depth of ``profile``."""
    examples = profile.examples_of(prop.share, case.effort)
    found = search(prop, case, replacer, examples=examples, seed=seed, database=database)
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
        layers_replaced=found.replaced,
        layers_expected=found.expected,
        worst_error=found.worst_error if prop.exact else None,
        tolerance=EXACT_TOLERANCE if prop.exact else None,
        seconds=found.seconds,
        seed=seed,
        failure=_failure(found, prop, case),
    )
    return Checked(verdict, found.drawn, frozenset(found.pairs))


def _outcome(found: Found, prop: Property) -> tuple[Any, str]:
    if found.failure is not None:
        return "failed", _message(found)
    if found.original_failed is not None:
        example, why = found.original_failed
        dead = why.startswith("the original's") or why.startswith("no ")
        return ("vacuous" if dead else "error"), f"{why} [{example}]"
    if found.examples == 0:
        return "vacuous", "no example was run"
    if not prop.once and found.replaced == 0:
        return "vacuous", "no layer was replaced in any example"
    if found.refused == 0 and prop.name == "refusal":
        return "vacuous", "no model that has to be refused was tried"
    return "held", ""


def _message(found: Found) -> str:
    assert found.failure is not None
    problem = found.failure[1]
    text = str(problem) if isinstance(problem, Disagreement) else f"{type(problem).__name__}: {problem}"
    text = text.splitlines()[0] if text else type(problem).__name__
    return f"{text} (not the same from run to run)" if found.flaky else text


def _failure(found: Found, prop: Property, case: Case) -> Failure | None:
    if found.failure is None:
        return None
    example, problem = found.failure
    error = problem.error if isinstance(problem, Disagreement) else None
    return Failure(
        id=f"{case.name}/{prop.name.replace(' ', '-')}",
        message=_message(found),
        example=in_words(example, case.axes),
        off_simplest=off_simplest(example, case.axes),
        error=error if error is not None and error < float("inf") else None,
        stages=problem.stages if isinstance(problem, Disagreement) else (),
        traceback=found.failing_traceback,
    )


def off_simplest(example: Example, axes: Iterable[Axis]) -> tuple[str, ...]:
    """Names of the axes whose value in ``example`` is not the simplest."""
    return tuple(axis.name for axis in axes if example[axis.name] != axis.simplest)


def in_words(example: Example, axes: tuple[Axis, ...]) -> dict[str, str]:
    """Axis by axis, those off their simplest value first."""
    off = off_simplest(example, axes)
    names = [*off, *(axis.name for axis in axes if axis.name not in off)]
    return {name: str(example[name]) for name in names} | {"seed": str(example.seed)}


def coverage(case: Case, checked: Iterable[Checked]) -> Coverage:
    """How often each axis value of ``case`` was drawn over all its properties, and what was claimed and missed."""
    drawn: Counter[tuple[str, Any]] = Counter()
    pairs: set[tuple[str, Any, str, Any]] = set()
    for one in checked:
        drawn.update(one.drawn)
        pairs.update(one.pairs)
    claimed = sorted((axis for axis in case.axes if axis.claimed), key=lambda axis: axis.name)
    wanted = [
        (a.name, x, b.name, y)
        for i, a in enumerate(claimed)
        for b in claimed[i + 1 :]
        for x in a.values
        for y in b.values
    ]
    missed = [f"{axis.name}={value}" for axis in claimed for value in axis.values if not drawn[(axis.name, value)]]
    missed += [f"{a}={x} with {b}={y}" for a, x, b, y in wanted if (a, x, b, y) not in pairs]
    return Coverage(
        case=case.name,
        axes={axis.name: {str(value): drawn[(axis.name, value)] for value in axis.values} for axis in case.axes},
        pairs_seen=sum(pair in pairs for pair in wanted),
        pairs_claimed=len(wanted),
        missed=tuple(missed[:50]),
    )


Progress = Callable[[Verdict], None]


def check_case(
    case: Case, *, profile: Profile, seed: int, policy: str, progress: Progress | None = None
) -> tuple[list[Checked], Coverage]:
    """Every property that applies to ``case``, in this process."""
    results = []
    for prop in PROPERTIES:
        if prop.applies(case):
            results.append(check_property(prop, case, profile=profile, seed=seed, policy=policy))
            if progress is not None:
                progress(results[-1].verdict)
    return results, coverage(case, results)
