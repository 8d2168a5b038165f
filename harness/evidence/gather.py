"""All evidence about one failing example, each part on its own: what cannot be gathered is said, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from reports.record import Stage

from ..case import Case, Example
from ..properties import Property
from ..search import tell
from ..trial import Replacer
from .localise import localise
from .minimise import NEIGHBOURS, nearest_passing
from .script import script

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What points at the cause. ``missing`` says what could not be gathered and why."""

    nearest: Example | None = None
    stages: tuple[Stage, ...] = ()
    script: str | None = None
    missing: tuple[str, ...] = ()


def gather(prop: Property, case: Case, example: Example, replacer: Replacer) -> Explanation:
    """Evidence about ``example``, on which ``prop`` fails. Raises nothing but what is no ``Exception``."""
    missing: list[str] = []

    def attempt(what: str, part: Callable[[], Part]) -> Part | None:
        try:
            return part()
        except Exception as problem:
            text = " ".join(str(problem).split())[:200]
            missing.append(f"No {what}: {type(problem).__name__}{text and ': ' + text}.")
            return None

    def fails(tried: Example) -> bool | None:
        return tell(prop, case, replacer, tried)[0]

    if prop.once:
        return Explanation(missing=("The property does not depend on an example: there is none to take apart.",))
    few = max(8, round(NEIGHBOURS / math.sqrt(case.effort)))
    nearest = attempt("nearest passing example", lambda: nearest_passing(example, case.axes, fails, budget=few))
    if nearest is None and not missing:
        missing.append("No example nearby was found to pass.")
    stages = attempt("departing stage", lambda: localise(case, example, replacer))
    written = attempt("script", lambda: script(prop, case, example, replacer))
    if stages == ():
        missing.append("In an ordinary call no stage departs: the fault is in how calls follow each other, or around them.")
    return Explanation(nearest=nearest, stages=stages or (), script=written, missing=tuple(missing))
