"""Judging one execution plan: the replacer that builds by it, in surroundings where it can be judged exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from policies import replace_module
from policies.fused.capture import BY_DEVICE, captured_by
from policies.fused.emulated import emulation
from policies.plans import CAPTURED, Plan, settle


@dataclass(frozen=True)
class ByPlan:
    """Replaces with the project's policies, by ``plan``."""

    plan: str

    def __call__(self, module: Any) -> Any:
        return replace_module(module, plan=self.plan)


@contextlib.contextmanager
def by_plan(plan: str, device: str = "cpu") -> Iterator[ByPlan]:
    """The replacer for ``plan``. Inside, plan ``packed`` packs float64 weights as well, by an emulator: exact properties
    would else never meet a packed weight; plan ``onednn`` takes them, and runs plain; on a CPU plans ``graphed`` and
    ``compiled`` capture by an emulator. Raises ``PlanUnavailable``."""
    settle(plan)
    with contextlib.ExitStack() as surroundings:
        if Plan(plan) in (Plan.ONEDNN, Plan.PACKED):
            surroundings.enter_context(emulation())
        if Plan(plan) in CAPTURED:
            surroundings.enter_context(captured_by(BY_DEVICE[device]))
        yield ByPlan(plan)
