"""Group norm of large images on a GPU, by channels: as exact as torch's own."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from harness.check import check_property
from harness.placed import placed
from harness.profiles import depth
from harness.properties import PROPERTIES, Property
from harness.rounding.statistic import DTYPES, FLOOR
from policies import replace_module
from policies.fused import diffusion_blocks
from policies.fused.diffusion_blocks import group_norm_by_channels

from ..unet import UNetCase
from ..vae import VAECase
from .graph_calls import DEVICES, NEEDS_GPU


def _batch_norm_stats(image: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As torch's kernel, which only CUDA has (InvStd in ATen's Normalization.cuh)."""
    variance, mean = torch.var_mean(image.float(), (0, 2, 3), correction=0)
    return mean, torch.where((variance == 0) & (eps == 0), 0.0, (variance + eps).rsqrt())


@pytest.mark.parametrize("device", DEVICES)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 5),
    channels=st.integers(1, 6),
    sides=st.tuples(st.integers(2, 19), st.integers(1, 17)),
    mean=st.sampled_from((0.0, 1.0, -8.0, 60.0)),
    spread=st.sampled_from((0.0, 0.1, 1.0)),
    eps=st.sampled_from((1e-6, 1e-5, 1e-3)),
    dtype=st.sampled_from(("float16", "bfloat16")),
    seed=st.integers(0, 2**16),
)
@example(batch=1, groups=1, channels=1, sides=(2, 2), mean=60.0, spread=1.0, eps=1e-6, dtype="float16", seed=1)
@example(batch=1, groups=2, channels=3, sides=(2, 2), mean=60.0, spread=0.0, eps=1e-6, dtype="float16", seed=1)
def test_by_channels_a_group_norm_is_as_exact_as_by_torch(
    device: str,
    batch: int,
    groups: int,
    channels: int,
    sides: tuple[int, int],
    mean: float,
    spread: float,
    eps: float,
    dtype: str,
    seed: int,
) -> None:
    """Sums of values and of squares in float32 are not exact enough for the first example; the second has no variance."""
    generator = torch.Generator().manual_seed(seed)
    kind = DTYPES[dtype]
    wide = spread * torch.randn(batch, groups * channels, *sides, generator=generator) + mean
    x = wide.to(device, kind).contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(groups * channels, generator=generator).to(device, kind) for _ in range(2))
    exact = F.group_norm(x.double(), groups, weight.double(), bias.double(), eps)

    def error(found: Tensor) -> float:
        return float((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    kernel = torch.batch_norm_stats if device == "cuda" else _batch_norm_stats
    with mock.patch.object(torch, "batch_norm_stats", kernel):
        mine = group_norm_by_channels(x, groups, weight, bias, eps)
    assert (mine.dtype, mine.stride()) == (x.dtype, x.stride())
    # In float32, as in torch's kernel for CUDA, values and mean are multiplied before one is taken from the other.
    scale = float(weight.double().square().mean().sqrt() / exact.square().mean().sqrt()) / math.sqrt(spread**2 + eps)
    # Means are merged pair by pair, which rounds log2(n) times by half an epsilon at most (Higham 1993).
    merges = math.log2(sides[0] * sides[1])
    lost = torch.finfo(torch.float32).eps * abs(mean) * scale * (1 + merges / 2)
    assert error(mine) <= 1.5 * error(F.group_norm(x, groups, weight, bias, eps)) + FLOOR * torch.finfo(kind).eps + lost


@NEEDS_GPU
@pytest.mark.parametrize("prop", [one for one in PROPERTIES if one.name.startswith("rounding")], ids=lambda one: one.name)
@pytest.mark.parametrize("case", [UNetCase(), VAECase()], ids=lambda one: one.name)
def test_on_a_gpu_models_keep_their_budget_with_every_image_normed_so(
    case: UNetCase | VAECase, prop: Property, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion_blocks, "LARGE_IMAGE", 0)
    there = placed(case, "cuda")
    few = depth("quick", 8)
    verdict = check_property(prop, there, profile=few, seed=1, policy="by channels", replacer=replace_module).verdict
    assert verdict.outcome == "held", verdict.reason
