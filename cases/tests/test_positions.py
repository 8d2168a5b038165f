"""Rotary positions in dtypes of their own."""

from __future__ import annotations

import pytest
import torch

from policies.anatomy import Rotary, RotaryStyle
from policies.fused.positions import rotate


@pytest.mark.parametrize("style", list(RotaryStyle))
@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_in_float32_turn_what_is_narrower_and_round_it_once(style: RotaryStyle, size: int, dtype: torch.dtype) -> None:
    """As OLMo has them: its attention takes queries, keys and values of one dtype."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=generator).to(dtype)
    cos, sin = (torch.randn(1, 1, 5, size, generator=generator) for _ in range(2))
    rotary = Rotary(style=style, size=size)
    turned = rotate(rotary, x, cos, sin)
    assert torch.equal(turned, rotate(rotary, x.float(), cos, sin).to(dtype))
