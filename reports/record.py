"""The run record: what one run of the harness found, as data. ``storage`` writes and reads it.

A record is written once and never edited, and it opens without torch, without transformers and without the other rooms.

Units: seconds for durations, bytes for memory, hertz for clocks. Errors are relative to the scale of the
original's output (its largest absolute value over the positions that count) unless a field says otherwise.
"""

from __future__ import annotations

import datetime
import sys
from typing import Literal

import msgspec

SCHEMA_VERSION = 1
NOT_FINITE = sys.float_info.max
"""What a NaN or an infinity (with its sign) becomes in a record (JSON has neither): larger than any figure measured."""

EXACT_TOLERANCE = 1e-10
"""Largest relative error between two float64 computations of one function."""

Outcome = Literal["held", "failed", "vacuous", "error", "unavailable"]
"""What became of one property on one case.

held         every example agreed, and the evidence shows that something was compared
failed       an example disagreed; ``Verdict.failure`` holds it
vacuous      nothing disagreed, but nothing was shown either (no example, no replaced layer, dead output)
error        the property could not be judged: the harness or the original raised
unavailable  not judged: the case needs a package that is not installed, or the original cannot do what would be asked
"""

WRONG = frozenset({"failed", "vacuous", "error"})
"""Outcomes that a person must look at."""

TimingVerdict = Literal["FASTER", "SAME", "SLOWER", "AMBIGUOUS", "VOID", "FAILED"]
"""FASTER, SAME (shown equivalent within the margin), SLOWER, AMBIGUOUS (the interval allows more than one of them),
VOID (the measurement contradicts itself or a ceiling), FAILED (equality did not hold, so nothing was timed)."""


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all record parts: immutable and strict; ``kw_only`` is not inherited, so each part says it again."""


class Accelerator(Struct, frozen=True, kw_only=True):
    name: str
    memory_bytes: int
    driver: str | None = None
    capability: str | None = None


class Environment(Struct, frozen=True, kw_only=True):
    """Fingerprint of where a run took place. Two timings are comparable only where ``machine`` agrees."""

    machine: str
    """Short stable hash of CPU model, core count, memory in GiB and accelerator: equal on equal machines."""
    cpu: str
    cores: int
    threads: int
    """With which timings on the CPU were measured."""
    memory_bytes: int
    accelerator: Accelerator | None
    platform: str
    python: str
    packages: dict[str, str]
    """Installed versions of the libraries that matter (torch, transformers, diffusers, ...)."""
    git: str | None
    """Commit of the harness, with ``+dirty`` appended when the tree had changes; None outside a checkout."""
    notes: tuple[str, ...] = ()
    """What could not be measured or pinned here, one sentence each."""


class Stage(Struct, frozen=True, kw_only=True):
    """Error at one named stage inside a layer: what it inherited from its input and what it added itself."""

    name: str
    own_error: float
    inherited_error: float


def first_departing(stages: tuple[Stage, ...]) -> Stage | None:
    """The first stage with an error of its own."""
    return next((stage for stage in stages if stage.own_error > EXACT_TOLERANCE), None)


class Failure(Struct, frozen=True, kw_only=True):
    """The minimal example on which a property did not hold, and what points at the cause."""

    id: str
    """``case/property``; what ``harness reproduce`` takes."""
    message: str
    """One sentence: what was expected and what was seen."""
    example: dict[str, str]
    """The minimal example in words: axis -> value, axes off their simplest value first."""
    off_simplest: tuple[str, ...] = ()
    """Axes of the minimal example that are not at their simplest value."""
    nearest_passing: dict[str, str] | None = None
    error: float | None = None
    stages: tuple[Stage, ...] = ()
    script: str | None = None
    """Self-contained Python source that shows the failure without the harness."""
    traceback: str | None = None
    notes: tuple[str, ...] = ()
    """Evidence that could not be gathered, and why, one sentence each."""


class Verdict(Struct, frozen=True, kw_only=True):
    """One property judged on one case."""

    case: str
    policy: str
    property: str
    statement: str
    """What the property claims, in one sentence."""
    outcome: Outcome
    reason: str = ""
    """One sentence that says why; of what held, what was left out."""
    examples: int
    """Examples that ran to a judgement (shrinking not counted)."""
    refused: int = 0
    """Examples in which the policy refused by name (allowed by match-or-refuse, and counted)."""
    refusals: dict[str, int] = {}
    """What was refused -> examples."""
    layers_replaced: int
    """Layers replaced over all examples."""
    layers_expected: int
    """Layers that should have been replaced over all examples."""
    worst_error: float | None = None
    tolerance: float | None = None
    seconds: float
    seed: int
    failure: Failure | None = None

    @classmethod
    def without_examples(
        cls,
        *,
        case: str,
        policy: str,
        property: str,
        statement: str,
        outcome: Outcome,
        reason: str,
        seed: int,
        seconds: float = 0.0,
    ) -> Verdict:
        """A verdict that came of no example: on what could not be judged, or has none."""
        return cls(
            case=case,
            policy=policy,
            property=property,
            statement=statement,
            outcome=outcome,
            reason=reason,
            examples=0,
            layers_replaced=0,
            layers_expected=0,
            seconds=seconds,
            seed=seed,
        )


class Coverage(Struct, frozen=True, kw_only=True):
    """How often each value of each declared axis of a case was judged in this run."""

    case: str
    axes: dict[str, dict[str, int]]
    pairs_seen: int = 0
    pairs_claimed: int = 0
    missed: tuple[str, ...] = ()
    """Axis values (``axis=value``) and pairs (``axis=value with axis=value``) that the case claims and that were never
    judged; all of them."""

    @property
    def missed_values(self) -> tuple[str, ...]:
        return tuple(one for one in self.missed if not _is_pair(one))

    @property
    def missed_pairs(self) -> tuple[str, ...]:
        return tuple(one for one in self.missed if _is_pair(one))


def _is_pair(missed: str) -> bool:
    """Whether a second axis follows: a value may say "with" too."""
    return any("=" in part for part in missed.split(" with ")[1:])


class ErrorBudget(Struct, frozen=True, kw_only=True):
    """How much of its error budget a policy used on one case in one dtype.

    The budget of an example is ``multiple`` times what the original's own rounding and one rounding of its parameters
    cause, and no less than ``multiple`` times ``floor`` epsilons of the dtype. A share above 1 is a failure.
    """

    case: str
    policy: str
    dtype: str
    examples: int
    used_median: float
    used_worst: float
    multiple: float
    floor: float


class Interval(Struct, frozen=True, kw_only=True):
    """A point estimate with a two-sided confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.99


class Timing(Struct, frozen=True, kw_only=True):
    """One paired comparison: ``subject`` against ``baseline`` on one workload."""

    case: str
    workload: str
    """For example ``bert-base``."""
    phase: str
    """``encoder``, ``prefill``, ``decode`` or ``image``."""
    shape: str
    """For example ``batch 1, 128 tokens``."""
    dtype: str
    device: str
    baseline: str
    """Column name, for example ``original sdpa``."""
    subject: str
    """Column name, for example ``replaced``."""
    verdict: TimingVerdict
    reason: str
    ratio: Interval | None = None
    """Baseline time over subject time: 1.25 means the subject takes 1/1.25 of the time."""
    baseline_seconds: tuple[float, ...] = ()
    """Raw seconds a call, one per pair, in the order measured."""
    subject_seconds: tuple[float, ...] = ()
    error: float | None = None
    """Relative error of the subject's output against the baseline's, measured before timing."""
    layers_replaced: int | None = None
    flops: float | None = None
    """Floating-point operations a call, counted from shapes."""
    bytes: float | None = None
    """Bytes that a call must at least move (weights, inputs and outputs)."""
    flops_fraction: float | None = None
    """Subject's achieved FLOP/s over the GEMM ceiling measured in the same run."""
    bytes_fraction: float | None = None
    products_fraction: float | None = None
    """Time of the subject's own products with weights, alone and through the same operators, over the subject's time."""
    peak_bytes: int | None = None
    """Memory at the subject's peak during a call."""
    rest_bytes: int | None = None
    """Memory the subject holds between calls."""
    clock: Literal["end-to-end", "device"] = "end-to-end"
    """What was timed: the whole call as the caller sees it, or the accelerator's work alone."""
    warnings: tuple[str, ...] = ()
    """What was unsteady while measuring (clock, throttling, other load) and what to do about it."""
    prepare_seconds: float | None = None
    """Time to replace, compile or capture, kept apart from the call's own time."""


class Ceilings(Struct, frozen=True, kw_only=True):
    """Speed of light measured in the same run."""

    device: str
    gemm_flops: dict[str, float]
    """Best GEMM rate found, by dtype, in FLOP/s."""
    copy_bytes: float
    """Copy bandwidth, bytes/s, reads plus writes."""
    warnings: tuple[str, ...] = ()
    """What disturbed the measurement: a ceiling that is too low voids honest rows."""


class NullLane(Struct, frozen=True, kw_only=True):
    """The A/A lane: the same call on both sides. ``alarms`` should be none."""

    comparisons: int
    alarms: int
    smallest_effect: float | None
    """Smallest relative difference this run's noise lets it detect, e.g. 0.02."""


class Run(Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA_VERSION
    id: str
    created: str
    """UTC, ISO 8601."""
    command: str
    profile: str
    seed: int
    complete: bool
    seconds: float
    environment: Environment
    verdicts: tuple[Verdict, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    budgets: tuple[ErrorBudget, ...] = ()
    timings: tuple[Timing, ...] = ()
    ceilings: tuple[Ceilings, ...] = ()
    null_lane: NullLane | None = None

    @property
    def ok(self) -> bool:
        """True when something was judged, every verdict held (unavailable ones aside), and no timed row was wrong."""
        outcomes = {v.outcome for v in self.verdicts}
        wrong = outcomes & WRONG or any(t.verdict == "FAILED" for t in self.timings)
        return not wrong and bool("held" in outcomes or self.timings)


def now() -> str:
    """The time, as a record has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def begun(created: str) -> datetime.datetime | None:
    """A record's time of creation, in UTC where it says no zone; None where it is no ISO 8601 time."""
    try:
        time = msgspec.convert(created, datetime.datetime)
        return (time if time.tzinfo is not None else time.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    except (msgspec.ValidationError, OverflowError):
        return None
