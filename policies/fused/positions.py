"""Rotary positions. Shapes: B batch, T tokens, E head size, R rotated elements of a head (R <= E)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..anatomy import Rotary, RotaryStyle


def rotate(rotary: Rotary, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R elements of each head in ``x`` (B, ..., T, E), as many as ``cos`` and ``sin`` have, by the angles
    behind them.

    ``cos`` and ``sin`` are (B or 1, 1, ..., T, R), each element with the angle of its own pair (Su et al., 2021; pairs as
    ``rotary.style`` says).
    """
    size = cos.shape[-1]
    turned, rest = (x, None) if size == x.shape[-1] else (x[..., :size], x[..., size:])
    if x.shape[-2] > 1 and not x.is_cuda:
        turned = turned.contiguous()  # as the quarter turn is: operands that lie alike are multiplied and added in half the time
    turned = torch.addcmul(turned * cos, _quarter_turn(rotary.style, turned), sin)
    # Angles may be of a wider dtype than what they turn; under autocast, where they always are, a cache holds that.
    turned = turned if torch.is_autocast_enabled(x.device.type) else turned.to(x.dtype)
    return turned if rest is None else torch.cat((turned, rest), dim=-1)


def _quarter_turn(style: RotaryStyle, x: Tensor) -> Tensor:
    """Each pair (a, b) turned to (-b, a)."""
    if style is RotaryStyle.HALF:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)
    pairs = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1)
    return pairs.flatten(-2)
