"""Ceilings and the rows they void."""

import pytest
import torch

from harness.timing import ceilings
from harness.timing.ceilings import Fractions, SpeedOfLight, fractions, measure_ceilings, void_beyond_ceiling
from harness.timing.cpu import CpuDevice
from harness.timing.paired import compare
from harness.timing.tests.noise import CALL_SECONDS, NoisyDevice

LIGHT = SpeedOfLight(
    device="cpu",
    gemm_flops={"float32": 1e11},
    stream_bytes={2**20: 4e11, 2**25: 1e11, 2**29: 5e10},
    seconds=2.0,
    warnings=(),
)


def test_a_call_is_held_against_the_memory_that_its_bytes_fit():
    """Small working sets stream from a cache."""
    assert [LIGHT.memory_rate(moved) for moved in (100, 2**20, 2**24, 2**25, 2**40)] == [4e11, 4e11, 4e11, 1e11, 5e10]
    assert LIGHT.record().copy_bytes == 5e10


def test_fractions_are_achieved_rates_over_ceilings():
    """None where a count or a ceiling is missing."""
    assert fractions(LIGHT, seconds=1.0, dtype="float32", flops=5e10, moved_bytes=2**29) == Fractions(
        flops=0.5, bytes=2**29 / 5e10
    )
    assert fractions(LIGHT, seconds=1.0, dtype="float64", flops=5e10) == Fractions(flops=None, bytes=None)


@pytest.mark.parametrize(("reached", "void"), [(1.04, False), (1.06, True), (None, False)])
def test_a_figure_beyond_the_ceiling_voids_the_row(reached, void):
    """With five percent for the ceiling's own uncertainty."""
    result = compare(lambda: CALL_SECONDS, lambda: CALL_SECONDS, device=NoisyDevice(), budget_seconds=0.2, seed=0)
    judged = void_beyond_ceiling(result, Fractions(flops=reached, bytes=None))
    assert (judged.verdict == "VOID") == void
    assert void == judged.reason.startswith("106% of the GEMM rate measured in this run is not possible")
    assert judged.ratio == result.ratio


def test_the_better_of_two_measurements_counts():
    """A disturbance that passes lowers neither."""
    other = SpeedOfLight(
        device="cpu",
        gemm_flops={"float32": 2e11, "bfloat16": 4e11},
        stream_bytes={2**20: 3e11},
        seconds=1.0,
        warnings=("w",),
    )
    best = LIGHT.best_with(other)
    assert best.gemm_flops == {"float32": 2e11, "bfloat16": 4e11}
    assert best.stream_bytes == LIGHT.stream_bytes
    assert (best.seconds, best.warnings) == (3.0, ("w",))


def test_ceilings_of_this_machine_are_measured_for_every_dtype_it_multiplies(monkeypatch):
    """A smaller working set is never slower than a larger one; a dtype without kernels is left out."""
    monkeypatch.setattr(ceilings, "_GEMM_SIZES", (32, 64))
    monkeypatch.setitem(ceilings._WORKING_SETS, "cpu", (2**16, 2**18))
    light = measure_ceilings(CpuDevice(threads=1), dtypes=(torch.float32, torch.bool), budget_seconds=0.1)
    assert set(light.gemm_flops) == {"float32"}
    assert light.gemm_flops["float32"] > 0
    assert light.stream_bytes[2**16] >= light.stream_bytes[2**18] > 0
