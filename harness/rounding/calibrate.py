"""Making the calibration: honest variants on random examples of every case, and what their errors come to.

``python -m cases.calibrate`` writes ``calibration.json`` anew; ``--examples`` and ``--seed`` make it another
draw. Each example is measured in one dtype, replaced and with one more honest variant; these take turns.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from reports.record import now

from ..case import Case, Example, Inputs
from ..nested import cast
from ..search import quiet
from .calibration import FILE, SCHEMA, Calibration, Multiple, write
from .statistic import DTYPES, FLOOR, Allowance, Measured, allowances, other_numbers, pooled
from .tail import EXCEEDED, extrapolate
from .variants import VARIANTS, Variant

EXAMPLES = 20_000
SEED = 20_000
STEP = 0.1
"""Multiples are rounded up to this."""
ASKED_AGAIN = 50
"""Examples of the largest ratios that are asked again with other numbers."""


@dataclass(frozen=True)
class Asked:
    """One honest variant on one example."""

    case: Case
    example: Example
    dtype: str
    variant: Variant

    def measured(self, original: torch.nn.Module, allowed: dict[str, Allowance]) -> Measured | None:
        """The output with the largest ratio; None where the variant does not exist. ``original`` stays as it is."""
        other = self.variant.example(self.case, self.example)
        if other is None:
            return None
        same = other == self.example
        model = self.variant.prepare(copy.deepcopy(original) if same else self._built(other))
        with self.variant.around():
            outputs = self.case.run(model, inputs_in(self.case, self.example, self.dtype))
        return max((one.measure(outputs[name]) for name, one in allowed.items()), key=lambda one: one.ratio)

    def allowed(self) -> tuple[torch.nn.Module, dict[str, Allowance]]:
        """The original and what it allows."""
        original = self._built(self.example)
        return original, allowances(self.case.run, original, inputs_in(self.case, self.example, self.dtype), self.example)

    def again(self) -> Measured | None:
        """The same with other numbers, pooled; None where those ask nothing."""
        found = []
        with self.case.surroundings(), torch.no_grad():
            for example in other_numbers(self.example):
                asked = Asked(self.case, example, self.dtype, self.variant)
                original, allowed = asked.allowed()
                measured = asked.measured(original, allowed) if allowed else None
                found += [] if measured is None else [measured]
        return pooled(found) if found else None

    def _built(self, example: Example) -> torch.nn.Module:
        return self.case.build(example).to(DTYPES[self.dtype])

    def __str__(self) -> str:
        return f"{self.case.name}, {self.variant.name}: {self.example}"


@dataclass
class Seen:
    """Ratios of one dtype with what was asked, and how many examples they come from."""

    examples: int = 0
    ratios: list[tuple[float, Asked]] = field(default_factory=list)

    @property
    def worst(self) -> float:
        return max((ratio for ratio, _ in self.ratios), default=0.0)

    def largest(self, name: Callable[[Asked], str]) -> dict[str, float]:
        """The largest ratio by something."""
        found: dict[str, float] = defaultdict(float)
        for ratio, asked in self.ratios:
            found[name(asked)] = max(found[name(asked)], ratio)
        return dict(sorted(found.items()))


def calibrate(
    cases: Iterable[Case],
    *,
    examples: int = EXAMPLES,
    seed: int = SEED,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Measure ``examples`` examples of ``cases`` and fit one multiple a dtype.

    Raises ``ValueError`` where there are too few examples to fit a tail.
    """
    start = time.perf_counter()
    seen = measure(tuple(cases), examples=examples, seed=seed, progress=progress)
    return Calibration(
        schema=SCHEMA,
        seed=seed,
        created=now(),
        seconds=round(time.perf_counter() - start, 1),
        packages={name: version(name) for name in ("torch", "transformers", "diffusers")},
        processor=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        floor=FLOOR,
        exceeded=EXCEEDED,
        dtypes={dtype: _fitted(one, seed) for dtype, one in seen.items()},
    )


def measure(
    cases: tuple[Case, ...], *, examples: int, seed: int, progress: Callable[[str], None] | None = None
) -> dict[str, Seen]:
    """Ratios by dtype. A case whose examples cost more gets fewer of them."""
    generator = random.Random(seed)
    seen = {dtype: Seen() for dtype in DTYPES}
    weights = [1.0 / case.effort for case in cases]
    with quiet():
        for index in range(examples):
            case = generator.choices(cases, weights)[0]
            dtype = tuple(DTYPES)[index % len(DTYPES)]
            _measure_one(case, drawn(case, generator), dtype, index, seen[dtype])
            if progress is not None and (index + 1) % 500 == 0:
                worst = ", ".join(f"{name} {one.worst:.2f}" for name, one in seen.items())
                progress(f"{index + 1} of {examples}; largest ratio so far: {worst}")
    return seen


def drawn(case: Case, generator: random.Random) -> Example:
    """A uniform draw over the axes of ``case``."""
    return Example({axis.name: generator.choice(axis.values) for axis in case.axes}, generator.randrange(2**16))


def _measure_one(case: Case, example: Example, dtype: str, index: int, seen: Seen) -> None:
    variants = (VARIANTS[0], VARIANTS[1 + index % (len(VARIANTS) - 1)])
    with case.surroundings(), torch.no_grad():
        original, allowed = Asked(case, example, dtype, variants[0]).allowed()
        seen.examples += bool(allowed)
        for variant in variants if allowed else ():
            asked = Asked(case, example, dtype, variant)
            measured = asked.measured(original, allowed)
            if measured is not None:
                seen.ratios.append((measured.ratio, asked))


def inputs_in(case: Case, example: Example, dtype: str) -> Inputs:
    """The inputs of ``example``, newly made, in ``dtype``."""
    return cast(case.inputs(example), DTYPES[dtype])


def _fitted(seen: Seen, seed: int) -> Multiple:
    ordered = sorted(seen.ratios, key=lambda one: one[0])
    tail = extrapolate([ratio for ratio, _ in ordered], seed)
    multiple = round(math.ceil(tail.level / STEP) * STEP, 6)
    with quiet():
        again = [asked.again() for _, asked in ordered[-ASKED_AGAIN:]]
    return Multiple(
        multiple=multiple,
        examples=seen.examples,
        ratios=len(ordered),
        median=ordered[len(ordered) // 2][0],
        worst=ordered[-1][0],
        worst_example=str(ordered[-1][1]),
        threshold=tail.threshold,
        shape=tail.shape,
        scale=tail.scale,
        asked_again=len(again),
        confirmed=sum(one is not None and one.ratio > multiple for one in again),
        worst_by_variant=seen.largest(lambda asked: asked.variant.name),
        worst_by_case=seen.largest(lambda asked: asked.case.name),
    )


def main(cases: Iterable[Case], arguments: list[str] | None = None) -> int:
    """The command. ``cases`` are those to calibrate on."""
    parser = argparse.ArgumentParser(prog="python -m cases.calibrate", description=__doc__)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=FILE)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        made = calibrate(cases, examples=chosen.examples, seed=chosen.seed, progress=print)
        write(made, chosen.out)
    except (ValueError, OSError) as problem:
        print(problem, file=sys.stderr)
        return 2
    for dtype, one in made.dtypes.items():
        again = f"{one.confirmed} of the {one.asked_again} largest exceed it with other numbers"
        print(f"{dtype}: multiple {one.multiple}, largest ratio {one.worst:.2f} in {one.ratios}, {again}")
    return 0
