"""Asking one property about tiny models, for tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from torch import nn

from harness.case import Example
from harness.properties import Property
from harness.search import quiet
from harness.trial import Trial
from policies import replace_module

from . import tiny

CASE = tiny.TinyLlama()


def examples(count: int) -> list[Example]:
    chosen = random.Random(5)
    return [Example({axis.name: chosen.choice(axis.values) for axis in CASE.axes}, chosen.randrange(2**16)) for _ in range(count)]


def check(prop: Property, example: Example, replacer: Callable[[nn.Module], Any] = replace_module) -> Trial:
    trial = Trial(CASE, example, replacer, dtype=prop.dtype)
    with quiet(), trial.mode():
        prop.check(trial)
    return trial


def first_failure(prop: Property, replacer: Callable[[nn.Module], Any], count: int) -> Exception | None:
    for example in examples(count):
        try:
            check(prop, example, replacer)
        except Exception as problem:
            return problem
    return None
