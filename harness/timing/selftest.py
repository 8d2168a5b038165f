"""Does the timing keep its promises on this machine? The engine of ``harness doctor --timing``.

Hundreds of A/A comparisons count false alarms; comparisons with a known amount of extra work count what is found. The call
is made of a hundred equal units of work, so a difference of 2 % is two more units: real work, in exact proportion, with
nothing to calibrate but the size of a unit. All kinds of comparison are interleaved, so that a self-test that is cut short
still says something about each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from scipy import stats

from .devices import Call, Device
from .null_lane import count_alarms, smallest_effect
from .paired import PairedResult, compare

ALARM_RATE = 0.01
"""Share of comparisons of equal calls that may end in a difference: intervals have 99 % confidence."""
CALL_SECONDS = 1e-3
PAIR_SECONDS = 5.0
UNITS = 100
_UNIT_SIZES = tuple(range(16, 257, 8))
_CALIBRATION_CALLS = 20


@dataclass(frozen=True, kw_only=True)
class InjectedEffect:
    """Comparisons in which the subject does a known share of extra work."""

    effect: float
    """Extra work of the subject, relative: 0.02."""
    comparisons: int
    found: int
    """Comparisons called SLOWER."""
    measured: float | None
    """Median over the comparisons of the extra time that was estimated; None where no comparison gave an interval."""

    @property
    def power(self) -> float | None:
        """Share of the comparisons that found the effect; None without any."""
        return self.found / self.comparisons if self.comparisons else None


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Alarms, power and cost on this machine."""

    device: str
    call_seconds: float
    """What one call took, median."""
    comparisons: int
    """A/A comparisons."""
    alarms: int
    alarm_bound: float
    """Upper 95 % confidence bound of the alarm rate (Clopper-Pearson): 0 alarms in 300 still allow 1 %."""
    smallest_effect: float | None
    effects: tuple[InjectedEffect, ...]
    seconds_per_pair: float
    """Mean wall time of a comparison."""
    longest_seconds: float
    complete: bool
    """False when the time limit came first."""
    warnings: dict[str, int]
    """Kinds of instability warnings and how many comparisons gave them."""

    @property
    def kept(self) -> bool:
        """Whether equal calls were compared, and no more of them called different than a rate of ``ALARM_RATE`` gives in 99 of a
        hundred self-tests."""
        if not self.comparisons:
            return False
        return bool(stats.binomtest(self.alarms, self.comparisons, ALARM_RATE, alternative="greater").pvalue >= 0.01)

    def lines(self) -> Iterator[str]:
        """The table for a terminal."""
        yield (
            f"{self.device}, calls of {self.call_seconds * 1e3:.2f} ms, {self.seconds_per_pair:.2f} s a pair "
            f"(longest {self.longest_seconds:.2f} s)"
        )
        yield (
            f"A/A: {self.alarms} alarms in {self.comparisons} comparisons "
            f"(rate below {self.alarm_bound:.1%} with 95 % confidence)"
        )
        for injected in self.effects:
            if injected.comparisons:
                measured = "no interval" if injected.measured is None else f"measured {injected.measured:+.2%}"
                yield (
                    f"+{injected.effect:.0%}: found in {injected.found} of {injected.comparisons} "
                    f"(power {injected.power:.0%}), {measured}"
                )
        if self.smallest_effect is not None:
            yield f"smallest effect that a full budget would find with 95 % power: {self.smallest_effect:.2%}"
        for kind, count in self.warnings.items():
            yield f"warning '{kind}' in {count} comparisons"
        if not self.complete:
            yield "incomplete: the time limit came first"


Progress = Callable[[int, int], None]
"""Called with comparisons done and comparisons planned."""


def selftest(
    device: Device,
    *,
    comparisons: int = 300,
    effects: tuple[float, ...] = (0.02, 0.03),
    effect_comparisons: int = 40,
    time_limit_seconds: float = float("inf"),
    work: Callable[[int], Call] | None = None,
    progress: Progress = lambda done, planned: None,
) -> SelfTest:
    """Run ``comparisons`` A/A comparisons and ``effect_comparisons`` for each of ``effects`` on ``device``.

    ``work(units)`` builds a call of that many equal units; by default matrix products sized so that ``UNITS`` of them take
    about ``CALL_SECONDS``. Raises ``ValueError`` for an effect that is not a whole number of units.
    """
    for effect in effects:
        if abs(effect * UNITS - round(effect * UNITS)) > 1e-9 or effect <= 0:
            raise ValueError(f"an effect must be a positive multiple of {1 / UNITS:.0%}, got {effect:.3%}")
    work = work or matrix_work(device)
    limit = device.now() + time_limit_seconds
    schedule = list(_schedule(comparisons, effects, effect_comparisons))
    results: dict[float, list[PairedResult]] = {effect: [] for effect in (0.0, *effects)}
    baseline = work(UNITS)
    subjects = {effect: work(UNITS + round(effect * UNITS)) for effect in effects} | {0.0: baseline}
    for number, effect in enumerate(schedule):
        if device.now() + PAIR_SECONDS > limit:
            break
        results[effect].append(compare(baseline, subjects[effect], device=device, budget_seconds=PAIR_SECONDS, seed=number))
        progress(number + 1, len(schedule))
    return _summary(device, results, planned=len(schedule))


def _schedule(comparisons: int, effects: tuple[float, ...], effect_comparisons: int) -> Iterator[float]:
    """Effects in the order to be measured, 0.0 for A/A, each kind spread evenly over the whole."""
    places = [((index + 0.5) / comparisons, 0.0) for index in range(comparisons)]
    for effect in effects:
        places += [((index + 0.5) / effect_comparisons, effect) for index in range(effect_comparisons)]
    return (effect for _, effect in sorted(places))


def _summary(device: Device, results: dict[float, list[PairedResult]], *, planned: int) -> SelfTest:
    every = [result for kind in results.values() for result in kind]
    null = results[0.0]
    alarms = count_alarms(null)
    kinds = [kind for result in every for kind in {warning.split(":")[0] for warning in result.warnings}]
    return SelfTest(
        device=device.name,
        call_seconds=statistics.median(statistics.median(result.baseline_seconds) for result in every) if every else float("nan"),
        comparisons=len(null),
        alarms=alarms,
        alarm_bound=float(stats.binomtest(alarms, len(null)).proportion_ci(0.90).high) if null else 1.0,
        smallest_effect=smallest_effect(null),
        effects=tuple(_injected(effect, kind) for effect, kind in results.items() if effect),
        seconds_per_pair=statistics.fmean(result.seconds for result in every) if every else float("nan"),
        longest_seconds=max((result.seconds for result in every), default=0.0),
        complete=len(every) == planned,
        warnings={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    )


def _injected(effect: float, results: list[PairedResult]) -> InjectedEffect:
    extra = [1 / result.ratio.estimate - 1 for result in results if result.ratio]
    return InjectedEffect(
        effect=effect,
        comparisons=len(results),
        found=sum(result.verdict == "SLOWER" for result in results),
        measured=statistics.median(extra) if extra else None,
    )


def matrix_work(device: Device, *, sizes: Sequence[int] = _UNIT_SIZES) -> Callable[[int], Call]:
    """Builds calls of ``units`` square float32 products, of the size among ``sizes`` at which ``UNITS`` of them come nearest
    to ``CALL_SECONDS`` on ``device``."""

    def call_seconds(size: int) -> float:
        call = _products(size, UNITS, device.kind)
        device.seconds(call, 1)
        return min(device.seconds(call, 1) for _ in repeat(None, _CALIBRATION_CALLS))

    size = min(sizes, key=lambda size: abs(call_seconds(size) - CALL_SECONDS))
    return lambda units: _products(size, units, device.kind)


def _products(size: int, units: int, kind: str) -> Call:
    left, right, out = torch.rand(3, size, size, device=kind)

    def call() -> None:
        for _ in repeat(None, units):
            torch.mm(left, right, out=out)

    return call
