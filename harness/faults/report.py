"""What an exam came to, as data: opens without torch, writes to JSON."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Literal

import msgspec

Status = Literal["killed", "survived", "excused", "stale"]
"""killed    a property noticed the fault
survived  every property held: the harness is too weak for it
excused   no property noticed, and the ledger says why it makes no difference here
stale     the ledger says that it makes no difference, and a property noticed, or it does not apply any more"""


ONE_CALL = ("model equality", "layer equality", "contract")
"""Properties that look at one call in exact mode."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one fault on one case. ``examples`` are counted over all properties that were asked."""

    fault: str
    case: str
    status: Status
    killer: str | None = None
    """The property that noticed."""
    examples: int = 0
    seconds: float = 0.0
    message: str = ""
    example: str | None = None
    """The example on which it was noticed, made simpler where that was asked for."""
    off_simplest: tuple[str, ...] | None = None
    """Axes of the simplified example that are off their simplest value; None where nothing was simplified."""
    places: tuple[str, ...] = ()
    """Stages, by their names inside a layer, at which the fault has to show first in the simplified example; none where
    it does not live in single stages."""
    departs: str | None = None
    """The first stage that localisation found to depart there."""

    @property
    def located(self) -> bool:
        """Whether localisation named a stage in which the fault lives."""
        return self.departs is not None and any(self.departs.endswith(f".{one}") for one in self.places)


def judged(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """Those in which the fault makes a difference."""
    return tuple(one for one in outcomes if one.status in ("killed", "survived"))


def killed(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    return tuple(one for one in outcomes if one.status == "killed")


def median_examples(outcomes: Iterable[Outcome]) -> float | None:
    """Median number of examples to the kill; None where nothing was killed."""
    counts = [one.examples for one in killed(outcomes)]
    return median(counts) if counts else None


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What one harmless subject (the clean policy, or an honest variant) was taken for, on one case."""

    subject: str
    case: str
    examples: int
    seconds: float
    property: str | None = None
    """The property that raised a false alarm; None where everything held."""
    message: str = ""
    example: str | None = None


class CaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """The exam of one case."""

    case: str
    outcomes: tuple[Outcome, ...]
    control: tuple[Alarm, ...]
    """The clean policy: asked in full once, and on every example on which a fault was noticed."""
    honest: tuple[Alarm, ...]
    faults: int
    """How many faults were looked at, applicable or not."""


class FaultReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole exam."""

    profile: str
    seed: int
    seconds: float
    cases: tuple[CaseReport, ...]
    problems: tuple[str, ...] = ()
    """What kept a case from being examined, one line each."""
    interrupted: bool = False
    """Whether the exam was broken off: what is not in the report was not examined."""

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(one for case in self.cases for one in case.outcomes)

    @property
    def judged(self) -> tuple[Outcome, ...]:
        """Pairs in which the fault makes a difference."""
        return judged(self.outcomes)

    @property
    def killed(self) -> tuple[Outcome, ...]:
        return killed(self.outcomes)

    @property
    def survivors(self) -> tuple[Outcome, ...]:
        return tuple(one for one in self.outcomes if one.status == "survived")

    @property
    def stale(self) -> tuple[Outcome, ...]:
        """Ledger entries that do not hold."""
        return tuple(one for one in self.outcomes if one.status == "stale")

    @property
    def false_alarms(self) -> tuple[Alarm, ...]:
        harmless = (alarm for case in self.cases for alarm in (*case.control, *case.honest))
        return tuple(one for one in harmless if one.property is not None)

    @property
    def faults(self) -> int:
        """How many distinct faults applied to any case."""
        return len({one.fault for one in self.judged})

    @property
    def kill_rate(self) -> float:
        """Share of the judged pairs that were killed, 0 to 1; 0 where nothing was judged."""
        return len(self.killed) / len(self.judged) if self.judged else 0.0

    @property
    def median_examples(self) -> float | None:
        return median_examples(self.outcomes)

    @property
    def median_off_simplest(self) -> float | None:
        """Median number of axes off their simplest value in simplified examples; None where none was simplified."""
        counts = [len(one.off_simplest) for one in self.killed if one.off_simplest is not None]
        return median(counts) if counts else None

    @property
    def placed(self) -> tuple[Outcome, ...]:
        """Faults that live in single stages and were noticed in one exact call: localisation compares the stages of
        such a call, so what only a later call or rounding shows has no stage that it could name."""
        return tuple(one for one in self.killed if one.places and one.killer in ONE_CALL)

    @property
    def located_rate(self) -> float | None:
        """Share of ``placed`` whose stage localisation named, 0 to 1; None where there are none."""
        return sum(one.located for one in self.placed) / len(self.placed) if self.placed else None

    @property
    def passed(self) -> bool:
        """Every fault noticed, no false alarm, every ledger entry true, nothing broken off, and something was judged at all."""
        wrong = self.survivors or self.stale or self.false_alarms or self.problems or self.interrupted
        return bool(self.judged) and not wrong

    def to_json(self) -> bytes:
        """The report with its summary, for scripts."""
        summary = {
            "passed": self.passed,
            "faults": self.faults,
            "pairs": len(self.judged),
            "kill_rate": self.kill_rate,
            "median_examples": self.median_examples,
            "median_off_simplest": self.median_off_simplest,
            "located_rate": self.located_rate,
            "survivors": self.survivors,
            "false_alarms": self.false_alarms,
        }
        return msgspec.json.encode({**summary, **msgspec.to_builtins(self)})
