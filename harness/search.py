"""Running one property over many examples, and keeping the smallest that fails.

A search begins with examples that meet every pair of axis values and goes on with random ones, which Hypothesis draws.
The first that fails is made simple axis by axis. Hypothesis would shrink too, but knows nothing of the
examples that it did not draw, nor that axes are independent.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis.errors import FlakyFailure, HypothesisException

from .case import Case, Example
from .coverage import Drawn, Pair, tally
from .covering import covering_examples
from .evidence.minimise import minimise
from .process import SHARED
from .properties import Property
from .trial import Disagreement, NothingToAsk, OriginalFailed, ReplacementRaised, Replacer, Trial, Vacuous


@dataclass
class Found:
    """What a search came to. ``failure`` is the smallest failing example with what was raised there."""

    examples: int = 0
    replaced: int = 0
    expected: int = 0
    refused: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    replays: int = 0
    worst_error: float = 0.0
    seconds: float = 0.0
    drawn: Drawn = field(default_factory=Counter)
    pairs: set[Pair] = field(default_factory=set)
    failure: tuple[Example, BaseException] | None = None
    original_failed: tuple[Example, str] | None = None
    original_raised: bool = False
    """Whether it raised there, rather than left nothing to compare with."""
    budgets_used: list[float] = field(default_factory=list)
    not_asked: dict[str, str] = field(default_factory=dict)
    flaky: bool = False
    last: Example | None = None

    @property
    def failing_traceback(self) -> str | None:
        raised = None if self.failure is None else self.failure[1]
        if isinstance(raised, ReplacementRaised):
            raised = raised.__cause__
        if raised is None or isinstance(raised, Disagreement):
            return None
        return "".join(traceback.format_exception(raised))


def search(prop: Property, case: Case, replacer: Replacer, *, examples: int, seed: int) -> Found:
    """Check ``prop`` on up to ``examples`` examples of ``case``; stops at the first failure and makes it simple."""
    found = Found()
    start = time.perf_counter()
    most = 1 if prop.once else examples
    with quiet():
        planned = [] if prop.once else covering_examples(case.axes, seed_of(seed, prop), most)
        try:
            with shared_untouched(case):
                _judge_planned(prop, case, replacer, planned, found)
                if found.failure is None and found.original_failed is None and most > len(planned):
                    _judge_random(prop, case, replacer, most - len(planned), seed, found)
        except SharedChanged as change:
            if found.failure is None and found.last is not None:
                found.failure = (found.last, change)
        if found.failure is not None:
            _simplify(prop, case, replacer, found)
    found.seconds = time.perf_counter() - start
    return found


def seed_of(seed: int, prop: Property) -> int:
    """A seed of the property's own: properties then meet different parts of the same array, and other random examples."""
    return seed + zlib.crc32(prop.name.encode())


def _judge_planned(prop: Property, case: Case, replacer: Replacer, planned: list[Example], found: Found) -> None:
    for example in planned:
        try:
            judge(prop, case, replacer, example, found)
        except Exception:
            if found.failure is None and found.original_failed is None:
                raise
            return


def give_random(case: Case, number: int, seed: int, take: Callable[[Example], None]) -> None:
    """Give ``take`` so many random examples of ``case``."""

    @with_seed(seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(case.strategy)
    def run(example: Example) -> None:
        take(example)

    run()


def _judge_random(prop: Property, case: Case, replacer: Replacer, examples: int, seed: int, found: Found) -> None:
    try:
        give_random(case, examples, seed_of(seed, prop), lambda example: judge(prop, case, replacer, example, found))
    except FlakyFailure:
        found.flaky = True
    except HypothesisException:
        raise
    except Exception:
        if found.failure is None and found.original_failed is None:
            raise


def _simplify(prop: Property, case: Case, replacer: Replacer, found: Found) -> None:
    """Put the simplest example that fails in the same way in the place of the failing one."""
    assert found.failure is not None
    example, problem = found.failure
    raised: dict[str, BaseException] = {}

    def fails(tried: Example) -> bool | None:
        outcome, why = tell(prop, case, replacer, tried)
        if outcome is not True or type(why) is not type(problem):
            return None if outcome is True else outcome
        raised[str(tried)] = why
        return True

    again = fails(example) is True
    if isinstance(problem, SharedChanged) and not again:
        # It was changed when somebody's file was imported, whatever the example, and has been put back since.
        found.failure, found.flaky = (case.simplest, problem), False
        return
    found.flaky = found.flaky or not again
    if prop.once or found.flaky:
        return
    simplest = minimise(example, case.axes, fails)
    found.failure = (simplest, raised[str(simplest)])


def tell(prop: Property, case: Case, replacer: Replacer, example: Example) -> tuple[bool | None, BaseException | None]:
    """Whether ``prop`` fails on one example, and what it raised; None where the example shows nothing."""
    found = Found()
    try:
        judge(prop, case, replacer, example, found)
    except Exception as problem:
        return (True, problem) if found.failure is not None else (None, problem)
    return False, None


def judge(prop: Property, case: Case, replacer: Replacer, example: Example, found: Found) -> None:
    """Check ``prop`` on one example and add what came of it to ``found``; raises what the property raised."""
    trial = Trial(case, example, replacer, dtype=prop.dtype)
    counts = found.failure is None
    if counts:
        found.examples += 1
        found.last = example
    watched = shared_untouched(case) if found.examples == 1 else contextlib.nullcontext()
    try:
        with watched, case.surroundings(), trial.mode():
            prop.check(trial)
    except NothingToAsk as nothing:
        found.examples -= found.failure is None
        trial.evidence.built.clear()  # nothing was judged on them
        trial.evidence.leave_out("some examples", nothing)
    except (Vacuous, OriginalFailed) as nothing:
        found.original_failed, found.original_raised = (example, str(nothing)), isinstance(nothing, OriginalFailed)
        raise
    except Exception as problem:
        found.failure = (example, problem)
        trial.evidence.note(getattr(problem, "error", None) or 0.0)
        raise
    finally:
        if counts:
            found.replaced += trial.evidence.replaced
            found.expected += trial.evidence.expected
            found.refused += bool(trial.evidence.refusals)
            found.refusals.update(set(trial.evidence.refusals))
            found.replays += trial.evidence.replays
            found.worst_error = max(found.worst_error, trial.evidence.worst_error)
            found.budgets_used += trial.evidence.budgets_used
            found.not_asked = trial.evidence.not_asked | found.not_asked
            _count_axes(found, prop, trial.evidence.built)


class SharedChanged(Disagreement):
    """What the original runs by too is not what it was."""


def see_shared(case: Case) -> None:
    """Remember what the models of ``case`` share with all others, as it is outside of the case's surroundings, and what those
    exchange."""
    with case.surroundings():
        pass  # it imports what it needs
    SHARED.look_at()
    with case.surroundings():
        inside = SHARED.differences()
    outside = SHARED.differences()
    SHARED.exchanged |= {name for name, one in inside.items() if name not in outside or outside[name].now != one.now}


@contextlib.contextmanager
def shared_untouched(case: Case) -> Iterator[None]:
    """Raise ``SharedChanged`` where what all models share is changed inside, or was before, other than by the case's
    surroundings; and put it back, so that whoever comes next is judged by the original."""
    see_shared(case)
    try:
        yield
    finally:
        changed = {name: one for name, one in SHARED.differences().items() if name not in SHARED.exchanged}
        for one in changed.values():
            one.put_back()
        if changed:
            names = ", ".join(sorted(changed))
            raise SharedChanged(f"the replacement changed what the original runs by as well: {names}")


def _count_axes(found: Found, prop: Property, built: list[Example]) -> None:
    """Count what a property that compares results has met."""
    for example in built if prop.exact and not prop.once else ():
        values, pairs = tally(example)
        found.drawn.update(values)
        found.pairs.update(pairs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Model libraries warn about odd configurations, and odd configurations are what cases draw.

    Logging is turned down for everybody: a library that is first imported inside sets up its own loggers then.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
