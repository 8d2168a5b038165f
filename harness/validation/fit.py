"""Match or refuse, for a policy from outside: what it refuses by name leaves a case's axes and is counted as refused.

Of this project's own policies a case says what has to be replaced. Of others nobody can know; there, a refusal that names
its feature is an honest answer, and everything else has to hold.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from policies.base import DSPolicy
from policies.swap import UnsupportedLayer

from ..case import Axis, Case, Example, Refusal, Value
from ..search import quiet

Refused = tuple[tuple[str, Value, str], ...]
"""Axis, value, and the feature that is named."""


def refused_by(policy: type[DSPolicy], case: Case) -> Refused:
    """What ``policy`` refuses in models of ``case``: each value of an axis that it does, alone."""
    asked = [(axis.name, value) for axis in case.axes for value in axis.values[1:]]
    answers = [(name, value, _refusal(case, case.simplest.with_value(name, value), policy)) for name, value in asked]
    return tuple((name, value, feature) for name, value, feature in answers if feature is not None)


def without(case: Case, refused: Refused) -> Case:
    """``case`` as it is asked of a policy from outside: the values of ``refused`` are not among its axes any more, but among its
    refusals."""
    own = tuple(
        Refusal(name=f"{name}={value}", feature=feature, build=partial(case.build, case.simplest.with_value(name, value)))
        for name, value, feature in refused
    )
    axes = tuple(_remaining(axis, refused) for axis in case.axes)
    return case.changed(axes=axes, refusals=lambda self: (*case.changed_layers(), *own))


def _remaining(axis: Axis, refused: Refused) -> Axis:
    gone = {value for name, value, _ in refused if name == axis.name}
    if not gone:
        return axis
    kept = tuple(value for value in axis.values if value not in gone)
    return replace(axis, values=kept, claimed=axis.claimed and len(kept) > 1)


def _refusal(case: Case, example: Example, policy: type[DSPolicy]) -> str | None:
    """The feature that ``policy`` refuses in a model of ``example``, or None."""
    try:
        with quiet(), case.surroundings():
            for layer in [one for one in case.build(example).modules() if policy.matches(one)]:
                policy.plan(layer)
    except UnsupportedLayer as refusal:
        return refusal.feature
    except Exception:
        return None  # the properties will say so
    return None
