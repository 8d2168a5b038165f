"""Match or refuse, on a derived case: what the policy refuses by name leaves the axes and is counted as refused.

A case that somebody wrote says itself what has to be replaced. A derived one cannot know; there, a refusal that names
its feature is an honest answer, and everything else has to hold.
"""

from __future__ import annotations

from dataclasses import replace

from policies.base import DSPolicy, UnsupportedLayer

from ..case import Example
from ..search import quiet
from .derivation import Derivation
from .derived import DerivedCase


def fitted(derivation: Derivation, policy: type[DSPolicy]) -> Derivation:
    """``derivation`` without what ``policy`` refuses, which is listed in ``refused``."""
    case = DerivedCase(derivation)
    axes, refused = [], []
    for axis in derivation.axes:
        reasons = {value: _refusal(case, case.simplest.with_value(axis.name, value), policy) for value in axis.values[1:]}
        kept = (axis.simplest, *(value for value in axis.values[1:] if reasons[value] is None))
        refused += [(axis.name, value, reason) for value, reason in reasons.items() if reason is not None]
        axes.append(replace(axis, values=kept, claimed=axis.claimed and len(kept) > 1))
    return replace(derivation, axes=tuple(axes), refused=tuple(refused))


def _refusal(case: DerivedCase, example: Example, policy: type[DSPolicy]) -> str | None:
    """The feature that ``policy`` refuses in a model of ``example``, or None."""
    with quiet():
        model = case.build(example)
    for layer in [one for one in model.modules() if policy.matches(one)]:
        try:
            policy.plan(layer)
        except UnsupportedLayer as refusal:
            return refusal.feature
        except Exception:
            return None
    return None
