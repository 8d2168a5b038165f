"""Making the calibration: honest variants on random examples of every case, and what their errors come to.

``python -m cases.calibrate`` writes ``calibration.json`` anew; ``--examples`` and ``--seed`` make it another
draw. Each example is measured in one dtype, replaced and with one more honest variant; these take turns.
"""

from __future__ import annotations

import argparse
import copy
import datetime
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

from ..case import Case, Example, Inputs
from ..search import quiet
from ..trial import cast
from .calibration import FILE, SCHEMA, Calibration, Multiple, write
from .statistic import DTYPES, FLOOR, Allowance, allowances
from .tail import ALARM, extrapolate
from .variants import VARIANTS, Variant

EXAMPLES = 20_000
SEED = 20_000
STEP = 0.1
"""Multiples are rounded up to this."""


@dataclass
class Seen:
    """Ratios of one dtype, with the largest by variant and case."""

    examples: int = 0
    ratios: list[float] = field(default_factory=list)
    worst_example: str = "none"
    by_variant: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_case: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, case: Case, example: Example, variant: str, ratio: float) -> None:
        if ratio > max(self.ratios, default=0.0):
            self.worst_example = f"{case.name}, {variant}: {example}"
        self.ratios.append(ratio)
        self.by_variant[variant] = max(self.by_variant[variant], ratio)
        self.by_case[case.name] = max(self.by_case[case.name], ratio)


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
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - start, 1),
        packages={name: version(name) for name in ("torch", "transformers", "diffusers")},
        processor=f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        floor=FLOOR,
        false_alarm=ALARM,
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
                worst = ", ".join(f"{name} {max(one.ratios, default=0.0):.2f}" for name, one in seen.items())
                progress(f"{index + 1} of {examples}; largest ratio so far: {worst}")
    return seen


def drawn(case: Case, generator: random.Random) -> Example:
    """A uniform draw over the axes of ``case``."""
    return Example({axis.name: generator.choice(axis.values) for axis in case.axes}, generator.randrange(2**16))


def _measure_one(case: Case, example: Example, dtype: str, index: int, seen: Seen) -> None:
    original = case.build(example).to(DTYPES[dtype])
    with case.surroundings(), torch.no_grad():
        allowed = allowances(case, original, inputs_in(case, example, dtype), example)
        if not allowed:
            return
        seen.examples += 1
        for variant in (VARIANTS[0], VARIANTS[1 + index % (len(VARIANTS) - 1)]):
            other = variant.example(case, example)
            if other is None:
                continue
            model = copy.deepcopy(original) if other == example else case.build(other).to(DTYPES[dtype])
            seen.add(case, example, variant.name, _ratio(case, example, dtype, variant, model, allowed))


def _ratio(
    case: Case, example: Example, dtype: str, variant: Variant, model: torch.nn.Module, allowed: dict[str, Allowance]
) -> float:
    model = variant.prepare(model)
    with variant.around():
        outputs = case.run(model, inputs_in(case, example, dtype))
    return max(allowance.ratio(outputs[name]) for name, allowance in allowed.items())


def inputs_in(case: Case, example: Example, dtype: str) -> Inputs:
    """The inputs of ``example``, newly made, in ``dtype``."""
    inputs = case.inputs(example)
    return Inputs(kwargs=cast(inputs.kwargs, DTYPES[dtype]), valid=inputs.valid)


def _fitted(seen: Seen, seed: int) -> Multiple:
    tail = extrapolate(seen.ratios, seed)
    ordered = sorted(seen.ratios)
    return Multiple(
        multiple=round(math.ceil(tail.level / STEP) * STEP, 6),
        examples=seen.examples,
        ratios=len(ordered),
        median=ordered[len(ordered) // 2],
        worst=ordered[-1],
        worst_example=seen.worst_example,
        threshold=tail.threshold,
        shape=tail.shape,
        scale=tail.scale,
        worst_by_variant=dict(seen.by_variant),
        worst_by_case=dict(seen.by_case),
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
        print(f"{dtype}: multiple {one.multiple}, largest ratio {one.worst:.2f} in {one.ratios}")
    return 0
