"""From a job to the rows of the report: build, show equality, time."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from policies import replace_module
from policies.fused.packed import held_bytes
from policies.plans import Plan, PlanUnavailable, settle
from reports.record import Timing

from ..case import Case
from ..placed import placed
from ..randomise import randomise
from ..search import quiet
from ..timing.devices import Device
from ..timing.paired import PairedResult, compare
from ..trial import Replacer, storages
from .columns import (
    GRAPHED,
    REPLACED,
    Column,
    compiled_columns,
    first_tensor,
    graphed_column,
    original_columns,
    planned_column,
    replaced_column,
)
from .gate import NotTimed, kind_of_equality, show_equal
from .jobs import Job
from .products import products_fraction


def time_job(
    job: Job,
    *,
    device: Device,
    seconds_a_pair: float,
    seed: int,
    replacer: Replacer = replace_module,
) -> tuple[Timing, ...]:
    """Every row of ``job``. A job that cannot be built gives one FAILED row that says why."""
    case = placed(job.entry.load(), device.kind)
    try:
        with torch.no_grad(), quiet(), case.surroundings():
            return _rows(job, case, replacer, device=device, seconds_a_pair=seconds_a_pair, seed=seed)
    except Exception as problem:
        return not_timed(job, device, _one_line(problem))


def not_timed(job: Job, device: Device, reason: str) -> tuple[Timing, ...]:
    """The one row of a job of which nothing is timed."""
    return (_row(job, device, "original", REPLACED, verdict="FAILED", reason=reason),)


def _rows(job: Job, case: Case, replacer: Replacer, *, device: Device, seconds_a_pair: float, seed: int) -> tuple[Timing, ...]:
    module = case.workload_module(job.workload).to(getattr(torch, job.dtype))
    originals = original_columns(case, module, job.workload)
    flops, moved = _count(originals[0].call, module)  # of eager attention: torch's counter knows no grouped heads in sdpa
    subjects, baselines = [], originals
    if job.compiled:
        *baselines, compiled = compiled_columns(case, module, job.workload)
        subjects = [(originals[-1], compiled)]
    plans = _plans(job, module, device) if replacer is replace_module else ()
    for plan in plans:
        column = planned_column(case, module, job.workload, plan)
        subjects += [(baseline, column) for baseline in baselines]
    replaced = replaced_column(case, module, job.workload, replacer)
    rows = []
    if device.graphs:
        try:
            subjects.append(_as_graphs(job, originals[-1], replaced, device))
        except RuntimeError as problem:
            name = GRAPHED.format(replaced.name)
            rows.append(_row(job, device, originals[-1].name, name, verdict="FAILED", reason=_one_line(problem)))
    pairs = [(baseline, replaced) for baseline in baselines] + subjects
    expected = originals[-1].output()
    equality = kind_of_equality(job.dtype, device.kind, images=not job.layer)
    costs = functools.cache(lambda subject: _costs(job, device, subject))
    for number, (baseline, subject) in enumerate(pairs):
        try:
            error = show_equal(expected, baseline, subject, equality)
            for clock in device.clocks:
                with device.pinned():
                    result = compare(
                        baseline.call, subject.call, device=device, budget_seconds=seconds_a_pair, seed=seed + number, clock=clock
                    )
                known = dict(error=error, flops=flops, bytes=moved, **costs(subject))
                rows.append(_timed(job, device, baseline, subject, result, **known))
        except Exception as problem:  # of this pair: what was measured of others stays
            reason = str(problem) if isinstance(problem, NotTimed) else _one_line(problem)
            rows.append(_row(job, device, baseline.name, subject.name, verdict="FAILED", reason=reason))
    return tuple(rows)


def _plans(job: Job, module: nn.Module, device: Device) -> tuple[Plan, ...]:
    """Plans beside the automatic one that can run here, in the module's dtype."""
    return tuple(plan for plan in job.plans(device.kind) if _runs(plan, module))


def _runs(plan: Plan, module: nn.Module) -> bool:
    try:
        settle(plan, module.parameters())
    except PlanUnavailable:
        return False
    return True


def _as_graphs(job: Job, original: Column, replaced: Column, device: Device) -> tuple[Column, Column]:
    """The call of the original as a graph, where it can be captured, and that of the replacement; a diffusion model's captures
    itself."""
    with contextlib.suppress(RuntimeError):  # a mask made on the host, say
        original = graphed_column(original, device)
    return original, graphed_column(replaced, device) if job.layer else replaced


def _one_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"


def _timed(job: Job, device: Device, baseline: Column, subject: Column, result: PairedResult, **values: Any) -> Timing:
    return _row(
        job,
        device,
        baseline.name,
        subject.name,
        verdict=result.verdict,
        reason=result.reason,
        warnings=result.warnings,
        ratio=result.ratio,
        baseline_seconds=tuple(_rounded(one) for one in result.baseline_seconds),
        subject_seconds=tuple(_rounded(one) for one in result.subject_seconds),
        layers_replaced=subject.replaced,
        prepare_seconds=subject.prepare_seconds,
        clock="device" if result.clock == "device" else "end-to-end",
        **values,
    )


def _costs(job: Job, device: Device, subject: Column) -> dict[str, Any]:
    """What a column costs whatever it is compared with."""
    return {
        "products_fraction": products_fraction(subject.call, device) if job.layer and subject.plain is None else None,
        "peak_bytes": device.peak_bytes(subject.call),
        "rest_bytes": _held(subject.module),
    }


def _row(job: Job, device: Device, baseline: str, subject: str, **values: Any) -> Timing:
    return Timing(
        case=job.entry.name,
        workload=job.workload.name,
        phase=job.workload.phase,
        shape=job.workload.shape,
        dtype=job.dtype,
        device=device.kind,
        baseline=baseline,
        subject=subject,
        **values,
    )


def _count(call: Callable[[], Any], module: nn.Module) -> tuple[float, float]:
    """Floating-point operations of a call, counted as it runs, and bytes that it must at least move."""
    with FlopCounterMode(display=False) as counter:
        output = first_tensor(call())
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return float(counter.get_total_flops()), float(weights + 2 * output.numel() * output.element_size())


def _held(module: nn.Module) -> int:
    """Bytes of the storages that the module's parameters and buffers live in, each counted once, and of packed weights."""
    return sum(storages(module).values()) + held_bytes(module)


def _rounded(seconds: float) -> float:
    """Four significant digits: finer than any clock here, and a quarter of the bytes in the record."""
    return round(seconds, 4 - math.ceil(math.log10(seconds))) if seconds > 0 else seconds


def warm_call(device: Device) -> Callable[[], object]:
    """A call of about a millisecond that computes nothing of interest: what the A/A lane compares with itself."""
    layer = randomise(nn.Linear(768, 3072), 0).to(device.kind)
    x = torch.randn(128, 768, device=device.kind)

    def call() -> object:
        with torch.no_grad():
            return layer(x)

    return call
