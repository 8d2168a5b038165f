"""Ceilings and the rows they void."""

import pytest
import torch

from harness.timing import ceilings
from harness.timing.ceilings import measure_ceilings
from harness.timing.cpu import CpuDevice
from harness.timing.light import SpeedOfLight, best, held_against
from reports.record import Timing

LIGHT = SpeedOfLight(
    device="cpu",
    gemm_flops={"float32": 1e11},
    stream_bytes={2**20: 4e11, 2**25: 1e11, 2**29: 5e10},
    warnings=(),
)


def test_a_call_is_held_against_the_memory_that_its_bytes_fit():
    """Small working sets stream from a cache."""
    assert [LIGHT.memory_rate(moved) for moved in (100, 2**20, 2**24, 2**25, 2**40)] == [4e11, 4e11, 4e11, 1e11, 5e10]
    assert LIGHT.record().copy_bytes == 5e10


def row(**values):
    """A timed row of one second a call."""
    return Timing(
        case="c", workload="w", phase="prefill", shape="s", device="cpu", baseline="b", subject="r", reason="", verdict="SAME",
        **{"dtype": "float32", "subject_seconds": (1.0, 2.0), **values},
    )  # fmt: skip


def test_fractions_are_achieved_rates_over_ceilings():
    """By the fastest call; None where a count or a ceiling is missing; nothing of a row that was not timed."""
    held = held_against(LIGHT, row(flops=5e10, bytes=2**29))
    assert (held.flops_fraction, held.bytes_fraction, held.verdict) == (0.5, 2**29 / 5e10, "SAME")
    assert held_against(LIGHT, row(flops=5e10, dtype="float64")).flops_fraction is None
    assert held_against(LIGHT, row(flops=5e20, subject_seconds=())) == row(flops=5e20, subject_seconds=())


@pytest.mark.parametrize(("fraction", "verdict"), [(1.04, "SAME"), (1.06, "VOID")])
def test_a_figure_beyond_the_ceiling_voids_the_row(fraction, verdict):
    """With five percent for the ceiling's own uncertainty."""
    held = held_against(LIGHT, row(flops=fraction * 1e11))
    assert held.verdict == verdict
    assert (verdict == "VOID") == held.reason.startswith("106% of the GEMM rate measured in this run is not possible")


def test_the_better_of_two_measurements_counts():
    """A disturbance that passes lowers neither."""
    other = SpeedOfLight(
        device="cpu",
        gemm_flops={"float32": 2e11, "bfloat16": 4e11},
        stream_bytes={2**20: 3e11},
        warnings=("w",),
    )
    higher = best([LIGHT, other])
    assert higher.gemm_flops == {"float32": 2e11, "bfloat16": 4e11}
    assert higher.stream_bytes == LIGHT.stream_bytes
    assert higher.record().warnings == ("w",)


def test_ceilings_of_this_machine_are_measured_for_every_dtype_it_multiplies(monkeypatch):
    """A smaller working set is never slower than a larger one; a dtype without kernels is left out."""
    monkeypatch.setattr(ceilings, "_GEMM_SIZES", (32, 64))
    monkeypatch.setitem(ceilings._WORKING_SETS, "cpu", (2**16, 2**18))
    light = measure_ceilings(CpuDevice(threads=1), dtypes=(torch.float32, torch.bool), budget_seconds=0.1)
    assert set(light.gemm_flops) == {"float32"}
    assert light.gemm_flops["float32"] > 0
    assert light.stream_bytes[2**16] >= light.stream_bytes[2**18] > 0


def test_half_precision_is_held_against_float32_where_a_processor_multiplies_it_faster_so(monkeypatch):
    """Such a processor may have no other kernel at all."""

    def refuses(left, right):
        raise RuntimeError("no kernel")

    for entry in ("_linear", "_mm", "_onednn"):
        monkeypatch.setattr(ceilings, entry, refuses)
    monkeypatch.setattr(ceilings, "_GEMM_SIZES", (32,))
    monkeypatch.setitem(ceilings._WORKING_SETS, "cpu", (2**16,))
    light = measure_ceilings(CpuDevice(threads=1), budget_seconds=0.1)
    assert set(light.gemm_flops) == {"bfloat16", "float16"}
