"""Judging one execution plan: the replacer that builds by it, in surroundings where it can be judged exactly."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from policies import replace_module
from policies.fused.capture import BY_DEVICE, captured_by
from policies.fused.emulated import emulation
from policies.plans import CAPTURED, Plan, settle

from .trial import Replacer


@contextlib.contextmanager
def by_plan(plan: str, device: str = "cpu") -> Iterator[Replacer]:
    """The replacer for ``plan``. Inside, plan ``packed`` packs float64 weights as well, by an emulator: exact properties
    would else never meet a packed weight; and on a CPU plans ``graphed`` and ``compiled`` capture by an emulator. Raises
    ``PlanUnavailable``."""
    settle(plan)
    with contextlib.ExitStack() as surroundings:
        if Plan(plan) is Plan.PACKED:
            surroundings.enter_context(emulation())
        if Plan(plan) in CAPTURED:
            surroundings.enter_context(captured_by(BY_DEVICE[device]))
        yield functools.partial(replace_module, plan=plan)
