"""The memory format in which an original returns its image, so that its replacement can return the same.

A convolution gives channels_last where its input or its weight is laid out so. Between convolutions an original loses
that format in a transformer (which copies to contiguous), gains it in an attention over pixels (whose transposed tokens
are channels_last, which torch recognises in batches of two and more), and keeps it through a concatenation only where
both sides have it. Only layout is at stake here, never a value. Where strides are ambiguous these rules may miss: an
image of one pixel, a batch of one behind several attentions over pixels, and blocks that somebody wrapped or exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FormatRule = Callable[[Any, bool, int], bool]
"""Takes a model, whether its input is channels_last, and the batch; says whether what reaches the last convolution
is."""


def original_gives_channels_last(model: nn.Module, image: Tensor, rule: FormatRule) -> bool:
    """Whether the original of ``model`` returns channels_last for ``image``."""
    convolutions = [one for one in _inside(model, "conv_out") if isinstance(one, nn.Conv2d)]
    if any(suggests_channels_last(one.weight) and not getattr(one, "fused_laid_out", False) for one in convolutions):
        return True
    return rule(model, suggests_channels_last(image), image.shape[0])


def _inside(model: Any, name: str) -> list[nn.Module]:
    """What the part of that name consists of: somebody may have wrapped it, or put another in its place."""
    part = getattr(model, name, None)
    return [*part.modules()] if isinstance(part, nn.Module) else []


def with_gradient_as_it_lies(image: Tensor) -> Tensor:
    """``image``, whose gradient arrives in its own memory format. From a convolution it comes in that of the weight."""
    if not (torch.is_grad_enabled() and image.requires_grad):
        return image
    passed = image.view_as(image)
    layout = torch.channels_last if suggests_channels_last(image) else torch.contiguous_format
    passed.register_hook(lambda gradient: gradient.contiguous(memory_format=layout))
    return passed


def suggests_channels_last(tensor: Tensor) -> bool:
    """torch's own reading of ambiguous strides (``is_channels_last_strides_2d`` in c10/core/MemoryFormat.h)."""
    sizes, strides = tensor.shape, tensor.stride()
    if tensor.dim() != 4 or strides[1] == 0:
        return False
    reach = 0
    for dim in (1, 3, 2, 0):
        if sizes[dim] == 0 or strides[dim] < reach or (dim == 0 and reach == strides[1]):
            return False
        reach = strides[dim] * max(sizes[dim], 1)
    return True


def coder_keeps_channels_last(coder: Any, given: bool, batch: int) -> bool:
    """The rule of a VAE's encoder and decoder, which are one line of blocks."""
    blocks = _blocks(coder, "down_blocks", "mid_block", "up_blocks")
    return given or any(_after(block, layer, False, batch) for block in blocks for layer in range(len(block.resnets)))


def unet_keeps_channels_last(unet: Any, given: bool, batch: int) -> bool:
    """The rule of a UNet, whose up blocks concatenate what its down blocks have put aside."""
    now, aside = given, [given]
    for block in _blocks(unet, "down_blocks"):
        for layer in range(len(block.resnets)):
            now = _after(block, layer, now, batch)
            aside.append(now)
        if getattr(block, "downsamplers", None) is not None:
            aside.append(now)
    for block in _blocks(unet, "mid_block"):
        for layer in range(len(block.resnets)):
            now = _after(block, layer, now, batch)
    for block in _blocks(unet, "up_blocks"):
        for layer in range(len(block.resnets)):
            now = _after(block, layer, now and (aside.pop() if aside else given), batch)
    return now


def _blocks(model: Any, *names: str) -> list[Any]:
    """The blocks of residual blocks under ``names``, each one or a list; of what somebody wrapped, those inside."""
    found = [getattr(model, name, None) for name in names]
    blocks = [block for one in found for block in (one if isinstance(one, nn.ModuleList) else [one])]
    return [one for block in blocks for one in _with_residuals(block)]


def _with_residuals(block: Any) -> list[Any]:
    if hasattr(block, "resnets"):
        return [block]
    return [one for one in block.modules() if hasattr(one, "resnets")] if isinstance(block, nn.Module) else []


def _after(block: Any, layer: int, now: bool, batch: int) -> bool:
    """The format after the attention of ``block`` that follows its ``layer``-th residual block."""
    attentions = getattr(block, "attentions", None) or ()
    attention = attentions[layer] if layer < len(attentions) else None
    if attention is None:
        return now
    return type(attention).__name__ == "Attention" and (now or batch > 1)
