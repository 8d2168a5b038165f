"""On which models a replacement of a whole model holds.

Where an example fails, it is made simple, one axis is found that decides, and only its values that pass are kept; then
the search goes on. What is left in the end is what the replacement holds for, and each step is a defect with its example.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace

from torch import nn

from policies.foreign.changed import NothingChanged

from ..case import Axis, Case, Example
from ..covering import covering_examples
from ..evidence.minimise import minimise
from ..properties.base import Property
from ..search import quiet, tell
from ..trial import Disagreement, Handle, Replacer

MOST_TRIED = 40
MOST_LIMITS = 12


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``axis`` has to be one of ``passing``; at ``failing`` the property fails, as ``example`` shows."""

    axis: str
    failing: tuple[object, ...]
    passing: tuple[object, ...]
    message: str
    example: Example
    error: float | None
    raised: bool
    refused: bool = False
    """The replacement itself said that it does not do such a model."""


class Refused(Exception):
    """A replacement said by an error of its own that it does not do this model."""


def refusing(replacer: Replacer) -> Replacer:
    """``replacer``, with its own objections told from its failures."""

    def replace_or_refuse(model: nn.Module) -> Handle:
        try:
            return replacer(model)
        except (ValueError, NotImplementedError) as objection:
            if not _meant(objection):
                raise
            raise Refused(" ".join(str(objection).split())) from objection

    return replace_or_refuse


def _meant(error: BaseException) -> bool:
    """Whether somebody raised it, by a statement of their own: Python's and torch's errors, for what was not foreseen, are of the
    same classes."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return line.startswith("raise")


@dataclass
class Domain:
    """``examples`` held inside the ``limits``."""

    limits: list[Limit] = field(default_factory=list)
    examples: int = 0
    problem: str = ""
    inside: Case | None = None
    """The case, kept to the domain."""
    nothing: str = ""
    """Why nothing was changed even in the simplest model."""


def as_one(case: Case) -> Case:
    """``case`` for replacements that take the model as a whole."""
    return case.changed(layered=False, expected=lambda self, example: 1)


def explore(prop: Property, case: Case, replacer: Replacer, *, examples: int, seed: int) -> Domain:
    """The domain on which ``prop`` holds of ``replacer``, over ``examples`` examples of ``case``."""
    domain = Domain()
    axes = case.axes
    with quiet():
        while len(domain.limits) < MOST_LIMITS:
            inside = domain.inside = case.changed(axes=axes)
            failing = _first_failing(prop, inside, replacer, examples, seed, domain)
            if failing is None:
                return domain
            limit = _limit(prop, inside, replacer, failing)
            if limit is None:
                why = tell(prop, inside, replacer, failing)[1]
                if isinstance(why, NothingChanged):
                    domain.nothing = str(why)
                    return domain
                domain.problem = f"fails at {failing}, whichever axis is changed: {why}"
                return domain
            domain.limits.append(limit)
            axes = tuple(_kept(axis, limit) for axis in axes)
    domain.problem = f"more than {MOST_LIMITS} limits"
    return domain


def _first_failing(prop: Property, case: Case, replacer: Replacer, examples: int, seed: int, domain: Domain) -> Example | None:
    domain.examples = 0
    for example in [case.simplest, *covering_examples(case.axes, seed, examples)]:
        failed, _ = tell(prop, case, replacer, example)
        if failed:
            return minimise(example, case.axes, lambda one: tell(prop, case, replacer, one)[0], budget=MOST_TRIED)
        domain.examples += failed is False
    return None


def _limit(prop: Property, case: Case, replacer: Replacer, example: Example) -> Limit | None:
    off = [axis for axis in reversed(case.axes) if example[axis.name] != axis.simplest]
    why = tell(prop, case, replacer, example)[1]
    for axis in off or case.axes:
        verdicts = {value: tell(prop, case, replacer, example.with_value(axis.name, value))[0] for value in axis.values}
        passing = tuple(value for value, failed in verdicts.items() if failed is False)
        if passing:
            return Limit(
                axis=axis.name,
                failing=tuple(value for value, failed in verdicts.items() if failed),
                passing=passing,
                message=" ".join(str(why).split()) or type(why).__name__,
                example=example,
                error=why.error if isinstance(why, Disagreement) else None,
                raised=not isinstance(why, Disagreement),
                refused=isinstance(why, Refused | NothingChanged),
            )
    return None


def _kept(axis: Axis, limit: Limit) -> Axis:
    if axis.name != limit.axis:
        return axis
    return replace(axis, values=tuple(value for value in axis.values if value in limit.passing))
