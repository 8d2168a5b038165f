"""A device made of noise: simulated time, so that the statistics are tested on thousands of comparisons without a clock.

A call given to it returns its true cost in seconds. What the device measures is that cost times a factor from one of the
noise models below. Run as a module, it prints alarms and power for each model:

    python -m harness.timing.tests.noise --comparisons 2000
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from harness.timing.devices import Call, Clock, Conditions, Device
from harness.timing.paired import PairedResult, compare

CALL_SECONDS = 1e-3
RECORDED = Path(__file__).with_name("recorded_two_threads.json")
_CHUNK = 512

Factors = Callable[[np.random.Generator], Iterator[float]]


def quiet(rng: np.random.Generator) -> Iterator[float]:
    """Independent normal noise of 2 %."""
    while True:
        yield from np.exp(0.02 * rng.standard_normal(_CHUNK)).tolist()


def loud(rng: np.random.Generator) -> Iterator[float]:
    """Independent noise of 30 %: too much for SAME within 1 %, so that every look is taken and each may raise an alarm."""
    while True:
        yield from np.exp(0.3 * rng.standard_normal(_CHUNK)).tolist()


def busy(rng: np.random.Generator) -> Iterator[float]:
    """Other programs fill the cores: a third of the samples is interrupted for three to eight times its length."""
    noise = quiet(rng)
    while True:
        interrupted = rng.random(_CHUNK) < 1 / 3
        for extra in np.where(interrupted, rng.uniform(3, 8, _CHUNK), 0.0).tolist():
            yield next(noise) * (1 + extra)


def drift(rng: np.random.Generator) -> Iterator[float]:
    """As ``quiet``, slowing down by 20 % in the first 2000 samples."""
    noise, sample = quiet(rng), 0
    while True:
        yield next(noise) * (1 + 0.2 * min(1.0, sample / 2000))
        sample += 1


def wandering(rng: np.random.Generator) -> Iterator[float]:
    """A first-order autoregression: correlation 0.98 from sample to sample, standard deviation 10 %, plus ``quiet``."""
    noise, level = quiet(rng), 0.0
    while True:
        for step in rng.standard_normal(_CHUNK).tolist():
            level = 0.98 * level + 0.1 * 0.2 * step
            yield next(noise) * float(np.exp(level))


def heavy_tails(rng: np.random.Generator) -> Iterator[float]:
    """Every twentieth sample or so is interrupted: a Pareto tail of index 1.2, which has no variance."""
    noise = quiet(rng)
    while True:
        interrupted = rng.random(_CHUNK) < 0.05
        for extra in np.where(interrupted, rng.pareto(1.2, _CHUNK), 0.0).tolist():
            yield next(noise) * (1 + extra)


def two_clocks(rng: np.random.Generator) -> Iterator[float]:
    """Two clock levels 40 % apart, each kept for 30 samples on average."""
    noise, slow = quiet(rng), False
    while True:
        for switch in (rng.random(_CHUNK) < 1 / 30).tolist():
            slow ^= switch
            yield next(noise) * (1.4 if slow else 1.0)


def resonant(rng: np.random.Generator) -> Iterator[float]:
    """Interference with a period of four samples, in step with the blocks: the worst case for a fixed order."""
    noise = quiet(rng)
    while True:
        for factor in (1.1, 1.0, 1.0, 1.1):
            yield next(noise) * factor


def recorded(rng: np.random.Generator) -> Iterator[float]:
    """Replay, from a random place, of 1 ms matrix products timed with two threads on a shared two-core machine."""
    series = json.loads(RECORDED.read_text())["microseconds"]
    place = int(rng.integers(len(series)))
    while True:
        yield series[place % len(series)] / 1000
        place += 1


MODELS: tuple[Factors, ...] = (quiet, loud, busy, drift, wandering, heavy_tails, two_clocks, resonant, recorded)


class NoisyDevice(Device):
    """Simulated time under one noise model; deterministic for a seed."""

    name = "simulated"
    kind = "cpu"
    unavailable = ()

    def __init__(self, model: Factors = quiet, *, seed: int = 0) -> None:
        self._factors = model(np.random.default_rng(seed))
        self._now = 0.0
        self.calls = 0

    def now(self) -> float:
        return self._now

    def tick_seconds(self) -> float:
        return 1e-9

    def synchronise(self) -> None:
        pass

    def seconds(self, call: Call, calls: int, clock: Clock = "end_to_end") -> float:
        seconds = float(call()) * next(self._factors)
        self._now += seconds * calls
        self.calls += calls
        return seconds

    def conditions(self) -> Conditions:
        return Conditions(at=self._now)

    def peak_bytes(self, call: Call) -> int | None:
        return None


def simulate(
    model: Factors, *, effect: float, comparisons: int, budget_seconds: float = 5.0, seed: int = 0
) -> list[PairedResult]:
    """Comparisons of a 1 ms call with one that takes ``effect`` more."""
    return [
        compare(
            lambda: CALL_SECONDS,
            lambda: CALL_SECONDS * (1 + effect),
            device=NoisyDevice(model, seed=seed + number),
            budget_seconds=budget_seconds,
            seed=seed + number,
        )
        for number in range(comparisons)
    ]


def share(results: list[PairedResult], *verdicts: str) -> float:
    """Fraction of ``results`` with one of ``verdicts``."""
    return sum(result.verdict in verdicts for result in results) / len(results)


def _table(comparisons: int) -> Iterator[str]:
    yield f"{'noise':12} {'A/A alarms':>10} {'A/A SAME':>9} {'covered':>8} {'+2 % found':>10} {'+3 % found':>10} {'s a pair':>9}"
    for model in MODELS:
        equal = simulate(model, effect=0.0, comparisons=comparisons)
        found = [simulate(model, effect=effect, comparisons=comparisons // 4, seed=10**6) for effect in (0.02, 0.03)]
        covered = sum(result.ratio is None or result.ratio.low <= 1 <= result.ratio.high for result in equal) / comparisons
        seconds = np.mean([result.seconds for result in equal + found[0] + found[1]])
        yield (
            f"{model.__name__:12} {share(equal, 'FASTER', 'SLOWER'):>10.2%} {share(equal, 'SAME'):>9.1%} {covered:>8.2%} "
            f"{share(found[0], 'SLOWER'):>10.1%} {share(found[1], 'SLOWER'):>10.1%} {seconds:>9.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Alarms and power of the paired comparison under simulated noise.")
    parser.add_argument("--comparisons", type=int, default=400)
    gc.freeze()  # every comparison collects garbage; leave out what was imported
    for line in _table(parser.parse_args().comparisons):
        print(line, flush=True)
