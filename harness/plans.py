"""Judging one execution plan: the replacer that builds by it, in surroundings where it can be judged exactly."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from policies import replace_module
from policies.fused.emulated import emulation
from policies.plans import Plan, settle

from .trial import Replacer


@contextlib.contextmanager
def by_plan(plan: str) -> Iterator[Replacer]:
    """The replacer for ``plan``. Inside, plan ``packed`` packs float64 weights as well, by an emulator: exact properties
    would else never meet a packed weight. Raises ``PlanUnavailable``."""
    settle(plan)
    surroundings = emulation() if Plan(plan) is Plan.PACKED else contextlib.nullcontext()
    with surroundings:
        yield functools.partial(replace_module, plan=plan)
