"""Running one property over many random examples, and keeping the smallest that fails.

Hypothesis draws and shrinks. What it is given is an ordinary function; what is kept is the last example that failed,
which after shrinking is the smallest found.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import FlakyFailure, HypothesisException

from .case import Case, Example
from .exact import exact_mode
from .properties import Property
from .trial import Disagreement, OriginalFailed, Replacer, Trial, Vacuous


@dataclass
class Found:
    """What a search came to. ``failure`` is the smallest failing example with what was raised there."""

    examples: int = 0
    replaced: int = 0
    expected: int = 0
    refused: int = 0
    worst_error: float = 0.0
    seconds: float = 0.0
    drawn: Counter[tuple[str, object]] = field(default_factory=Counter)
    pairs: set[tuple[str, object, str, object]] = field(default_factory=set)
    failure: tuple[Example, BaseException] | None = None
    original_failed: tuple[Example, str] | None = None
    flaky: bool = False
    first_failure_after: int | None = None

    @property
    def failing_traceback(self) -> str | None:
        if self.failure is None or isinstance(self.failure[1], Disagreement):
            return None
        return "".join(traceback.format_exception(self.failure[1]))


def search(
    prop: Property, case: Case, replacer: Replacer, *, examples: int, seed: int, database: str | None = None
) -> Found:
    """Check ``prop`` on up to ``examples`` random examples of ``case``; stops and shrinks at the first failure."""
    found = Found()
    start = time.perf_counter()
    kept = DirectoryBasedExampleDatabase(database) if database else None
    phases = (Phase.generate, Phase.shrink) if kept is None else (Phase.reuse, Phase.generate, Phase.shrink)

    @with_seed(seed)
    @settings(
        max_examples=1 if prop.once else examples,
        deadline=None,
        database=kept,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(case.strategy)
    def run(example: Example) -> None:
        judge(prop, case, replacer, example, found)

    try:
        with quiet():
            run()
    except FlakyFailure:
        found.flaky = True
    except HypothesisException:
        raise
    except Exception:
        if found.failure is None and found.original_failed is None:
            raise
    found.seconds = time.perf_counter() - start
    return found


def judge(prop: Property, case: Case, replacer: Replacer, example: Example, found: Found) -> None:
    """Check ``prop`` on one example and add what came of it to ``found``; raises what the property raised."""
    trial = Trial(case, example, replacer, double=prop.exact)
    mode = exact_mode() if prop.exact else torch.no_grad()
    if found.failure is None:
        found.examples += 1
        _count_axes(found, example)
    try:
        with case.surroundings(), mode:
            prop.check(trial)
    except (Vacuous, OriginalFailed) as nothing:
        found.original_failed = (example, str(nothing))
        raise
    except Exception as problem:
        found.first_failure_after = found.first_failure_after or found.examples
        found.failure = (example, problem)
        raise
    finally:
        if found.failure is None:
            found.replaced += trial.evidence.replaced
            found.expected += trial.evidence.expected
            found.refused += len(trial.evidence.refusals)
            found.worst_error = max(found.worst_error, trial.evidence.worst_error)


def _count_axes(found: Found, example: Example) -> None:
    values = sorted(example.values.items())
    found.drawn.update(values)
    found.pairs.update((a, x, b, y) for i, (a, x) in enumerate(values) for b, y in values[i + 1 :])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Model libraries warn about odd configurations, and odd configurations are what cases draw."""
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers", "megatron")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
