"""Latency through pytest-benchmark: ``pytest cases --benchmark-only``.

Groups are workloads; within one, the original and the replaced layer. The paired verdict, which is the one to believe
(the rounds of pytest-benchmark come one side after the other), is in ``extra_info``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cases import CASES
from harness.bench.columns import Column, original_columns, replaced_column
from harness.bench.gate import show_equal
from harness.case import Case, Workload
from harness.timing.opening import open_device
from harness.timing.paired import compare

LARGEST = 300_000_000
"""Bytes of fp32 weights: larger workloads are for ``harness bench``, which fits them into a budget."""
PAIRED_SECONDS = 1.0

WORKLOADS = [
    pytest.param(entry, workload, id=f"{workload.name}-{workload.phase}-{workload.batch}x{workload.tokens}")
    for entry in CASES
    if entry.unavailable is None
    for workload in entry.load().workloads
    if workload.weight_bytes <= LARGEST
]


@pytest.fixture(scope="module")
def columns(request: pytest.FixtureRequest) -> Iterator[tuple[Column, Column]]:
    """The original at its best and the replacement, with the same weights."""
    entry, workload = request.param
    case = entry.load()
    with torch.no_grad(), case.surroundings():
        yield _columns(case, workload)


def _columns(case: Case, workload: Workload) -> tuple[Column, Column]:
    module = case.workload_module(workload)
    original = original_columns(case, module, workload)[-1]
    replaced = replaced_column(case, module, workload)
    show_equal(original.output(), original, replaced, "float32")
    return original, replaced


@pytest.mark.parametrize("columns", [one.values for one in WORKLOADS], ids=[one.id for one in WORKLOADS], indirect=True)
@pytest.mark.parametrize("side", ["original", "replaced"])
def test_latency(columns: tuple[Column, Column], side: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    """Time one side; the replaced side also carries the paired verdict."""
    original, replaced = columns
    benchmark.group = request.node.callspec.id.removesuffix(f"-{side}").removeprefix(f"{side}-")
    if side == "replaced":
        result = compare(original.call, replaced.call, device=open_device("cpu"), budget_seconds=PAIRED_SECONDS, seed=0)
        benchmark.extra_info |= {
            "paired_verdict": result.verdict,
            "paired_ratio": None if result.ratio is None else result.ratio.estimate,
            "paired_interval": None if result.ratio is None else [result.ratio.low, result.ratio.high],
            "paired_reason": result.reason,
            "baseline": original.name,
        }
    benchmark(replaced.call if side == "replaced" else original.call)
