"""Time two calls against each other.

Requirements this file must meet:

* The two sides are interleaved in blocks of four samples, ABBA or BAAB by a fair coin: linear drift cancels within a block,
  and the coin is what makes the interval valid (see ``statistics``).
* Samples are short. On recorded noise of a shared machine with two threads, 1 ms samples estimate the ratio of a 1 ms call
  with a standard error of 0.15 % in five seconds, 16 ms samples with 0.37 %: neighbours share their disturbances.
  So a sample holds only as many calls as the clock's resolution asks for.
* Both sides run the same number of calls a sample, or equal sides would not be treated alike.
* No look at the data is free: they are planned before the first sample (see ``stopping``).
* The budget bounds the whole comparison, warm-up included; raw samples are kept.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from reports.record import Interval, TimingVerdict

from ..collector import collector_held_off
from .devices import Call, Clock, Device, disturbances
from .stability import instabilities
from .statistics import PAIRS_IN_BLOCK, Judgement, judge
from .stopping import FIRST_LOOK_BLOCKS, Look, plan_looks, settled

MAXIMUM_BLOCKS = 1024
_SAMPLES_IN_BLOCK = 2 * PAIRS_IN_BLOCK
_SAMPLE_SECONDS = 0.5e-3
_TICKS_IN_SAMPLE = 1000
_ENOUGH_BLOCKS = 2 * FIRST_LOOK_BLOCKS
_WARM_UP_SHARE = 0.1
_WARM_UP_ROUNDS = 2
_ORDERS = ((0, 1, 1, 0), (1, 0, 0, 1))
"""Sides of a block's samples: 0 the baseline, 1 the subject."""


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """One comparison, with its samples."""

    verdict: TimingVerdict
    reason: str
    ratio: Interval | None
    """Baseline time over subject time: above one, the subject is faster."""
    standard_error: float | None
    """Of the log ratio."""
    baseline_seconds: tuple[float, ...]
    """Seconds a call, one per pair, in the order measured; two successive pairs are one block."""
    subject_seconds: tuple[float, ...]
    planned_pairs: int
    """Pairs that the budget would have allowed."""
    calls_per_sample: int
    clock: Clock
    seconds: float
    """Wall time of the whole comparison."""
    warnings: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """Pairs measured."""
        return len(self.baseline_seconds)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    calls: int
    """Calls a sample."""
    looks: tuple[Look, ...]


def compare(
    baseline: Call,
    subject: Call,
    *,
    device: Device,
    budget_seconds: float,
    seed: int,
    clock: Clock = "end_to_end",
) -> PairedResult:
    """Time ``subject`` against ``baseline`` until the answer is settled or the budget is spent.

    Both callables take nothing; what they return is dropped. The caller has them ready (built, compiled, captured, inside
    ``torch.no_grad`` where that is meant) and has shown that they compute the same thing. At least one block is measured
    however small the budget; too few blocks for an interval give AMBIGUOUS.
    Raises ``ValueError`` for a budget that makes no sense; what a callable raises passes through.
    """
    if not budget_seconds > 0:
        raise ValueError(f"budget_seconds must be positive, got {budget_seconds}")
    start = device.now()
    gc.collect()
    with collector_held_off():  # a collection in the middle of a sample would be charged to whichever side is running
        timed, wall = _warm_up((baseline, subject), device=device, until=start + _WARM_UP_SHARE * budget_seconds, clock=clock)
        deadline = start + budget_seconds
        plan = _plan(timed, wall, seconds_left=deadline - device.now(), tick_seconds=device.tick_seconds())
        blocks = _blocks((baseline, subject), device=device, clock=clock, calls=plan.calls, coin=random.Random(seed))
        before = device.conditions()
        judgement, (baseline_seconds, subject_seconds) = _sample(blocks, plan, device=device, deadline=deadline)
        after = device.conditions()
    unsteady = () if judgement.verdict == "VOID" else instabilities(baseline_seconds, subject_seconds)
    return PairedResult(
        verdict=judgement.verdict,
        reason=judgement.reason,
        ratio=judgement.ratio,
        standard_error=judgement.standard_error,
        baseline_seconds=tuple(baseline_seconds),
        subject_seconds=tuple(subject_seconds),
        planned_pairs=plan.looks[-1].blocks * PAIRS_IN_BLOCK,
        calls_per_sample=plan.calls,
        clock=clock,
        seconds=device.now() - start,
        warnings=(*disturbances(before, after), *unsteady),
    )


def _warm_up(sides: tuple[Call, Call], *, device: Device, until: float, clock: Clock) -> tuple[float, float]:
    """Alternate both sides; return what one call costs: on the clock (of the faster side), and in wall time (mean of both).

    The two differ where synchronising or flushing a cache surrounds the timed part.
    """
    device.synchronise()
    timed: list[float] = []
    wall: list[float] = []
    while len(timed) < _WARM_UP_ROUNDS or device.now() < until:
        begin = device.now()
        timed.append(min(device.seconds(side, 1, clock) for side in sides))
        wall.append((device.now() - begin) / len(sides))
    return statistics.median(timed), statistics.median(wall)


def _plan(timed: float, wall: float, *, seconds_left: float, tick_seconds: float) -> _Plan:
    """Calls a sample and looks, from the cost of a call: short samples first, longer ones only where they fill the budget, and
    shorter than the clock's resolution asks for where else there were too few blocks for an interval. Neither clock is in step
    with calls, so that what it rounds off is one more noise."""
    shortest = max(_SAMPLE_SECONDS, _TICKS_IN_SAMPLE * tick_seconds)
    long_enough = math.ceil(shortest / max(timed, tick_seconds))
    blocks_of_single_calls = seconds_left / (_SAMPLES_IN_BLOCK * max(wall, tick_seconds))
    long_enough = min(long_enough, math.floor(blocks_of_single_calls / _ENOUGH_BLOCKS))
    calls = max(long_enough, math.floor(blocks_of_single_calls / MAXIMUM_BLOCKS), 1)
    blocks = math.floor(blocks_of_single_calls / calls)
    return _Plan(calls=calls, looks=plan_looks(min(MAXIMUM_BLOCKS, max(1, blocks))))


def _blocks(
    sides: tuple[Call, Call], *, device: Device, clock: Clock, calls: int, coin: random.Random
) -> Iterator[tuple[list[float], list[float]]]:
    """Measure blocks for ever; each yields two samples of the baseline and two of the subject, in the order measured."""
    while True:
        samples: tuple[list[float], list[float]] = ([], [])
        for side in coin.choice(_ORDERS):
            samples[side].append(device.seconds(sides[side], calls, clock))
        yield samples


def _sample(
    blocks: Iterator[tuple[list[float], list[float]]], plan: _Plan, *, device: Device, deadline: float
) -> tuple[Judgement, tuple[list[float], list[float]]]:
    """Measure and look as planned. The last look's allowance is unspent until then, so running out of time may use it."""
    times: tuple[list[float], list[float]] = ([], [])
    start = device.now()
    measured, late = 0, False
    for look in plan.looks:
        while measured < look.blocks and not (late := _late(start, measured, device.now(), deadline)):
            for kept, samples in zip(times, next(blocks), strict=True):
                kept.extend(samples)
            measured += 1
        last = late or look is plan.looks[-1]
        judgement = judge(*times, share=plan.looks[-1].share if last else look.share)
        if last or settled(judgement):
            break
    return judgement, times


def _late(start: float, measured: int, now: float, deadline: float) -> bool:
    """True when one more block like those measured so far would end after the deadline."""
    return measured > 0 and now + (now - start) / measured > deadline
