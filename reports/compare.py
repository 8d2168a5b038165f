"""Two runs compared: what became wrong, what was repaired, what got slower or faster.

Requirements this file must meet:

* Only like is compared with like. A verdict is matched by case, policy and property; a timing also needs the same
  machine, threads, dtype, device, clock, workload, phase, shape and columns. What differs is said in sentences.
* Times of two runs are never set against each other directly: clocks and neighbours change from night to night. Each
  run holds its subject's time *relative to its own baseline*, as an interval, and those intervals are compared: a row
  got slower when the head's whole interval lies below the base's and the change exceeds a margin. Two disjoint 99 %
  intervals are a stricter rule than a 99 % test of the difference (Schenker and Gentleman, The American Statistician
  55(3), 2001), which suits a comparison of hundreds of rows.
* What is no longer there is said: of a case whose package is missing that it is not judged any more, with the reason, and of
  any other how much of it this run lacks, in one change a case.
* A row that could not be timed, its outputs being unequal, is wrong wherever it is: nothing has to be like it in the base.
* Only replaced columns are called slower or faster: two originals against each other are upstream's affair.
* Two runs with nothing in common are an error that says so, never an empty "no regressions".
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from reports import wording
from reports.circumstances import differences, timings_apart
from reports.record import WRONG
from reports.summary import is_replaced, measured_ratio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from reports.record import Interval, Run, Timing, Verdict

MARGIN = 0.02
"""Smallest relative change of a ratio that counts, disjoint intervals notwithstanding."""

FAIL_ON = {"wrong": ("wrong",), "slower": ("slower",), "refused": ("refused", "unavailable"), "missing": ("missing",)}
"""Categories of ``--fail-on`` and the kinds of change each stands for."""

Found = TypeVar("Found")
Kind = Literal["wrong", "still wrong", "fixed", "refused", "unavailable", "missing", "slower", "faster"]


class ComparisonError(ValueError):
    """Two runs cannot be compared, or ``--fail-on`` names no category. One line."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that differs between two runs."""

    kind: Kind
    case: str
    subject: str
    """The property, or what was timed; the case where it is about all of it."""
    sentence: str
    effect: float | None = None
    """For timings: relative change of the ratio, -0.15 when the subject lost 15 % against its baseline."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What changed from ``base`` to ``head`` (run ids), begun at these times (ISO 8601)."""

    base: str
    head: str
    base_created: str
    head_created: str
    differences: tuple[str, ...]
    """How the circumstances differ (``circumstances``), and what could not be compared, one sentence each."""
    changes: tuple[Change, ...]
    """Ordered by kind; timings by how much they changed."""
    only_in_base: tuple[str, ...]
    only_in_head: tuple[str, ...]
    verdicts_compared: int
    timings_compared: int

    @property
    def counted(self) -> str:
        """How many things changed, and how many are as wrong as before."""
        still = len(self.of("still wrong"))
        return wording.count(len(self.changes) - still, "change") + (f", {still:,} still wrong" if still else "")

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """The changes of one kind."""
        return tuple(change for change in self.changes if change.kind == kind)


def compare(base: Run, head: Run, *, margin: float = MARGIN) -> Comparison:
    """Compare two runs; ``margin`` is relative (0.02 for 2 %).

    Raises ``ComparisonError`` when no verdict and no timing of one run has a like in the other, and no package is missing that
    would say why.
    """
    before, after = _verdicts(base), _verdicts(head)
    apart = timings_apart(base.environment, head.environment)
    timed_before, timed_after = _timings(base), _timings(head)
    common = [] if apart else [key for key in timed_after if key in timed_before]
    judged = [key for key in after if key in before]
    lost = list(_lost_cases(base, head))
    if not lost and not comparable(base, head):
        raise ComparisonError(_nothing_in_common(base, head, apart, timed_before.keys() & timed_after.keys()))
    changes = [c for key, verdict in after.items() for c in _verdict_changes(before.get(key), verdict)]
    changes += lost
    changes += _missing_parts(base, head, _without(before, after), {} if apart else _without(timed_before, timed_after))
    changes += _equality_changes(base.timings, head.timings)
    pairs = [(timed_before[key], timed_after[key]) for key in common]
    changes += [c for old, new in pairs for c in _timing_changes(old, new, margin)]
    order = {kind: place for place, kind in enumerate(Kind.__args__)}  # type: ignore[attr-defined]
    return Comparison(
        base=base.id,
        head=head.id,
        base_created=base.created,
        head_created=head.created,
        differences=(
            *apart,
            *differences(base, head, [(before[key], after[key]) for key in judged]),
            *_unmeasured(pairs),
        ),
        changes=tuple(sorted(changes, key=lambda c: (order[c.kind], -abs(c.effect or 0.0)))),
        only_in_base=(*_without(before, after), *(() if apart else _without(timed_before, timed_after))),
        only_in_head=(*_without(after, before), *(() if apart else _without(timed_after, timed_before))),
        verdicts_compared=len(judged),
        timings_compared=sum(_both_measured(old, new) for old, new in pairs),
    )


def comparable(base: Run, head: Run) -> bool:
    """Whether any verdict or timing of one run has a like in the other, so that ``compare`` does not raise."""
    timed = not timings_apart(base.environment, head.environment) and _timings(base).keys() & _timings(head).keys()
    return bool(timed or _verdicts(base).keys() & _verdicts(head).keys())


def violations(comparison: Comparison, fail_on: Collection[str]) -> tuple[Change, ...]:
    """The changes that the named categories forbid; empty means the comparison passes.

    Raises ``ComparisonError`` for a name that is not in ``FAIL_ON``.
    """
    unknown = [name for name in fail_on if name not in FAIL_ON]
    if unknown:
        raise ComparisonError(f"--fail-on takes {', '.join(FAIL_ON)}; not {wording.one_line(', '.join(unknown))}")
    kinds = {kind for name in fail_on for kind in FAIL_ON[name]}
    return tuple(change for change in comparison.changes if change.kind in kinds)


def _unmeasured(pairs: list[tuple[Timing, Timing]]) -> tuple[str, ...]:
    number = sum(not _both_measured(old, new) for old, new in pairs)
    rows = wording.count(number, "timed row is", "timed rows are")
    return (f"{rows} not compared, being void or without an interval in one of the runs.",) if number else ()


def _nothing_in_common(base: Run, head: Run, apart: tuple[str, ...], alike: Collection[str]) -> str:
    line = f"runs {base.id} and {head.id} have nothing in common"
    if apart and alike:
        return wording.one_line(f"{line}: {wording.count(len(alike), 'timing')} would match, but {_lower(apart[0])}")
    policies = [{(v.case, v.property): v.policy for v in run.verdicts} for run in (base, head)]
    both = policies[0].keys() & policies[1].keys()
    if both:
        old, new = ({found[key] for key in both} for found in policies)
        return wording.one_line(f"{line}: they judged different policies or plans, {_names(old)} against {_names(new)}")
    return wording.one_line(
        f"{line}: {_contents(base)} against {_contents(head)}; compare runs over the same cases and properties"
    )


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].removesuffix(".")


def _names(some: Collection[str]) -> str:
    return "; ".join(sorted(some))


def _contents(run: Run) -> str:
    cases = sorted({v.case for v in run.verdicts} | {t.case for t in run.timings})
    return ", ".join(cases) if cases else "an empty run"


def _verdicts(run: Run) -> dict[str, Verdict]:
    return {f"{v.case}: {v.property} ({v.policy})": v for v in run.verdicts}


def _timings(run: Run) -> dict[str, Timing]:
    return {f"{t.case}: {wording.where(t)}, {wording.pair(t)}": t for t in run.timings}


def _without(some: dict[str, Found], others: Collection[str]) -> dict[str, Found]:
    return {name: one for name, one in some.items() if name not in others}


def _lost_cases(base: Run, head: Run) -> Iterator[Change]:
    """Cases that cannot be judged in the head: of each it holds one verdict, which has no like in a base that judged it."""
    judged = Counter(v.case for v in base.verdicts if v.outcome != "unavailable")
    for case, verdict in _cases_unavailable(head).items():
        if judged[case]:
            verdicts = wording.count(judged[case], "verdict")
            sentence = f"{case}: not judged any more ({verdicts} in the base run): {verdict.reason}"
            yield Change(kind="unavailable", case=case, subject=verdict.property, sentence=sentence)


def _cases_unavailable(run: Run) -> dict[str, Verdict]:
    return {v.case: v for v in run.verdicts if v.property == "available"}


def _missing_parts(base: Run, head: Run, verdicts: dict[str, Verdict], timings: dict[str, Timing]) -> Iterator[Change]:
    """What the base judged or timed and the head did not, unless another change says why."""
    said = _cases_unavailable(head).keys()
    lost = Counter(v.case for v in verdicts.values() if v.outcome != "unavailable" and v.case not in said)
    failed = {_subject(t) for t in head.timings if t.verdict == "FAILED"}
    untimed = Counter(t.case for t in timings.values() if t.verdict != "FAILED" and _subject(t) not in failed)
    for case in dict.fromkeys([*lost, *untimed]):
        parts = ((lost[case], "verdict"), (untimed[case], "timed row"))
        named = " and ".join(wording.count(number, noun) for number, noun in parts if number)
        are = "is" if lost[case] + untimed[case] == 1 else "are"
        yield Change(kind="missing", case=case, subject=case, sentence=f"{case}: {named} of the base run {are} not in this one")


def _verdict_changes(old: Verdict | None, new: Verdict) -> list[Change]:
    before = old.outcome if old is not None else "not in the base run"
    found: list[tuple[Kind, str]] = []
    if new.outcome in WRONG:
        kind: Kind = "still wrong" if before in WRONG else "wrong"
        message = new.failure.message if new.failure is not None else new.reason
        found.append((kind, f"{new.outcome} (before: {before}): {message}"))
    elif new.outcome == "unavailable" and old is not None and before != "unavailable":
        found.append(("unavailable", f"unavailable (before: {before}): {new.reason}"))
    elif new.outcome == "held" and before in WRONG:
        found.append(("fixed", f"held (before: {before})."))
    if old is not None and old.examples and (refused := _newly_refused(old, new)):
        found.append(("refused", refused))
    owner = f"{new.case}: {new.property}"
    return [Change(kind=k, case=new.case, subject=new.property, sentence=f"{owner}: {s}") for k, s in found]


def _newly_refused(old: Verdict, new: Verdict) -> str | None:
    if old.refusals or new.refusals:
        names = [name for name in new.refusals if name not in old.refusals]
        return f"refused now, not before: {', '.join(names)}." if names else None
    if new.refused and not old.refused:
        return f"{wording.count(new.refused, 'example')} of {new.examples + new.refused:,} refused now, none before."
    return None


def _equality_changes(base: Iterable[Timing], head: Iterable[Timing]) -> Iterator[Change]:
    """What FAILED rows tell, whatever the machine: equality is no matter of speed. A row whose job could not be built names no
    baseline, so that one row stands for all of its subject."""
    before, after = _by_subject(base), _by_subject(head)
    for subject, new in after.items():
        old = before.get(subject)
        was = old.verdict if old is not None else "not in the base run"
        if new.verdict == "FAILED":
            kind: Kind = "still wrong" if was == "FAILED" else "wrong"
            yield _timing_change(kind, new, f"not timed (before: {was}): {new.reason}")
        elif was == "FAILED":
            yield _timing_change("fixed", new, "the outputs agree again, so it is timed.")


def _by_subject(timings: Iterable[Timing]) -> dict[tuple[str, ...], Timing]:
    """A row of each subject, one that FAILED where there is one."""
    found: dict[tuple[str, ...], Timing] = {}
    for t in timings:
        key = _subject(t)
        if key not in found or t.verdict == "FAILED":
            found[key] = t
    return found


def _subject(t: Timing) -> tuple[str, ...]:
    return t.case, t.workload, t.phase, t.shape, t.dtype, t.device, t.subject


def _timing_changes(old: Timing, new: Timing, margin: float) -> list[Change]:
    first, second = measured_ratio(old), measured_ratio(new)
    if first is None or second is None or not is_replaced(new):
        return []
    effect = second.estimate / first.estimate - 1
    if second.high < first.low and effect < -margin:
        return [_timing_change("slower", new, _moved(old, new, first, second), effect)]
    if second.low > first.high and effect > margin:
        return [_timing_change("faster", new, _moved(old, new, first, second), effect)]
    return []


def _timing_change(kind: Kind, timing: Timing, sentence: str, effect: float | None = None) -> Change:
    subject = f"{wording.where(timing)}, {wording.pair(timing)}"
    return Change(kind=kind, case=timing.case, subject=subject, sentence=f"{timing.case}: {subject}: {sentence}", effect=effect)


def _both_measured(old: Timing, new: Timing) -> bool:
    return measured_ratio(old) is not None and measured_ratio(new) is not None


def _moved(old: Timing, new: Timing, first: Interval, second: Interval) -> str:
    sentence = (
        f"{wording.ratio(first.estimate)} [{wording.interval(first)}], "
        f"then {wording.ratio(second.estimate)} [{wording.interval(second)}] "
        f"({wording.change(second.estimate / first.estimate - 1)})"
    )
    sides = (
        (new.subject, old.subject_seconds, new.subject_seconds),
        (new.baseline, old.baseline_seconds, new.baseline_seconds),
    )
    times = [
        f"{name} {wording.duration(statistics.median(earlier))}, then {wording.duration(statistics.median(later))}"
        for name, earlier, later in sides
        if earlier and later
    ]
    return f"{sentence}; {'; '.join(times)}." if times else f"{sentence}."
