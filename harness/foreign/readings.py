"""Whether a foreign policy reads its layer right, and if not, which facts it gets wrong.

The layer is rebuilt from what the policy says and compared with the original, exactly, over random examples. Where the
two part, the example is made simple and each fact in turn is taken from our own reading instead: the one that heals the
example is at fault. It is ours from then on, and the search goes on, until the rest agrees on every example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from policies.foreign.facts import FACTS

from ..case import Case, Example
from ..covering import covering_examples
from ..evidence.minimise import minimise
from ..properties.base import Property
from ..properties.equality import LAYER_EQUALITY, MODEL_EQUALITY
from ..search import quiet, tell
from ..trial import Disagreement, Replacer, Trial

MOST_TRIED = 60
"""Examples tried to make one failing example simple."""

ReplacerWith = Callable[[frozenset[str]], Replacer]
"""The replacer by a foreign reading in which these facts are ours."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fact that a policy gets wrong. ``values`` are the values of ``axis`` at which the simplest failing example
    fails; ``axis`` is None where the simplest example of all fails."""

    facts: tuple[str, ...]
    message: str
    example: Example
    error: float | None
    axis: str | None
    values: tuple[object, ...]


@dataclass
class Proof:
    """What came of one reading. ``examples`` agreed in the end, with the facts at fault taken from us."""

    faults: list[Fault] = field(default_factory=list)
    ours: frozenset[str] = frozenset()
    examples: int = 0
    problem: str = ""
    """Why the rest could not be proven, if it could not."""


def _both(trial: Trial) -> None:
    LAYER_EQUALITY.check(trial)
    MODEL_EQUALITY.check(trial)


READING = Property(
    name="foreign reading",
    statement="A layer rebuilt from what a foreign policy says of it computes the same, alone and in its model.",
    check=_both,
)


About = Callable[[BaseException], tuple[str, ...]]
"""Which facts an error is about, as far as it says itself."""


@dataclass(frozen=True)
class Judge:
    """Judges one reading on a case."""

    case: Case
    replacer: ReplacerWith
    about: About

    def prove(self, *, examples: int, seed: int) -> Proof:
        """Judge it on ``examples`` examples."""
        proof = Proof()
        planned = [self.case.simplest, *covering_examples(self.case.axes, seed, examples)]
        ours_when_judged = []
        with quiet():
            for example in planned:
                while faults := self._faults(example, proof.ours):
                    proof.faults += faults
                    new = frozenset(fact for fault in faults for fact in fault.facts)
                    if not new:
                        proof.problem = f"no fact is at fault: {faults[0].message}"
                        return proof
                    proof.ours |= new
                ours_when_judged.append(proof.ours)
            for example, ours in zip(planned, ours_when_judged, strict=True):
                failed, why = (False, None) if ours == proof.ours else self._tell(example, proof.ours)
                if failed:
                    proof.problem = f"still wrong with {', '.join(sorted(proof.ours))} from us: {why}"
                    return proof
                proof.examples += failed is False
        return proof

    def _tell(self, example: Example, ours: frozenset[str]) -> tuple[bool | None, BaseException | None]:
        return tell(READING, self.case, self.replacer(ours), example)

    def _faults(self, example: Example, ours: frozenset[str]) -> list[Fault]:
        """The faults that ``example`` shows, each with the simplest example that shows it."""
        if self._tell(example, ours)[0] is not True:
            return []
        simple = minimise(example, self.case.axes, lambda one: self._tell(one, ours)[0], budget=MOST_TRIED)
        why = self._tell(simple, ours)[1]
        assert why is not None
        named = self.about(why)
        if named and not set(named) <= ours:
            return [self._fault(named, simple, why, ours)]
        guilty = self._guilty(simple, ours)
        if not guilty:
            return [self._fault((), simple, why, ours)]
        return [self._alone(fact, simple, why, ours) for fact in guilty]

    def _guilty(self, example: Example, ours: frozenset[str]) -> list[str]:
        """The smallest set of facts, as far as one goes, that heals ``example`` when they are ours."""
        kept = [fact for fact in FACTS if fact not in ours]
        if self._tell(example, ours | set(kept))[0] is not False:
            return []
        for fact in list(kept):
            without = [one for one in kept if one != fact]
            if self._tell(example, ours | set(without))[0] is False:
                kept = without
        return kept

    def _alone(self, fact: str, example: Example, why: BaseException, ours: frozenset[str]) -> Fault:
        """The fault of one fact, with every other fact ours; where it does no harm alone, that of all together."""
        others = ours | (frozenset(FACTS) - {fact})
        failed, alone = self._tell(example, others)
        if failed and alone is not None:
            return self._fault((fact,), example, alone, others)
        return self._fault((fact,), example, why, ours)

    def _fault(self, facts: tuple[str, ...], example: Example, why: BaseException, ours: frozenset[str]) -> Fault:
        axes = self.case.axes
        axis = next((one for one in reversed(axes) if example[one.name] != one.simplest), None)
        values: tuple[object, ...] = ()
        if axis is not None:
            values = tuple(v for v in axis.values if self._tell(example.with_value(axis.name, v), ours)[0])
        return Fault(
            facts=facts,
            message=" ".join(str(why).split()) or type(why).__name__,
            example=example,
            error=why.error if isinstance(why, Disagreement) else None,
            axis=None if axis is None else axis.name,
            values=values,
        )
