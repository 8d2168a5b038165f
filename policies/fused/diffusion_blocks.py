"""Parts of diffusion models around attention, faster or without needless copies.

* a convolution whose image is small beside its weight: a matrix product. oneDNN reorders a convolution's weight at each
  call, which for the deep layers of a UNet takes longer than the convolution; a weight in channels_last already is the
  matrix of the product. No second copy of it is made.
* a convolution of half precision on a processor that multiplies none: in float32 (see ``widened``).
* feed-forward layers: the faster linear operator, one buffer less in the gate.
* the transformer between them: no copy from channels_last to contiguous and back.
* group norms of large images on a GPU: see ``group_norm_by_channels``.

Shapes: B batch, C channels in, O channels out, Y x X image, K x L kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..plans import Plan
from .boundary import suggests_channels_last
from .memory import alone, lay_out, may_move
from .swapped import Swapped, apply, differentiated, linear
from .transforms import compiling, transforming
from .widened import HALVES, suits_convolution

CHANNELS_LAST = torch.channels_last
LARGE_IMAGE = 2**21
"""Elements from which on an image's group norm is faster by channels on a GPU. Measured on an H100 in float16, as graphs,
microseconds of torch's kernel and by channels, B by C by sides: 33 and 74 at 2 by 640 by 32, 59 and 47 at 1 by 512 by 64, 184 and
109 at 2 by 960 by 64, 295 and 99 at 1 by 512 by 128, 1327 and 313 at 1 by 128 by 512."""


_IS_PATCHED = "_conv_forward"
"""What is put on a convolution where images are to tile, which wraps them around on one side alone."""


class FusedConv2d(Swapped):
    """Mixin before ``nn.Conv2d``."""

    _fused_before: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Shape and strides of the weight before it was laid out."""

    @property
    def fused_laid_out(self) -> bool:
        return self._fused_before is not None and self._fused_before[0] == self.weight.shape

    def fused_lay_out(self) -> None:
        """Lay out the weight for channels_last, in place and bit for bit, unless it is so already or must keep its storage."""
        weight = self.weight
        if weight.is_contiguous(memory_format=CHANNELS_LAST) or not may_move(weight) or not alone((weight,)):
            return
        self.__dict__["_fused_before"] = (weight.shape, weight.stride())
        weight.data = weight.data.contiguous(memory_format=CHANNELS_LAST)

    def fused_give_back(self) -> None:
        """Give the weight, or what was made of it since (another one, the origin of a parametrized one), the strides that it
        had. One of another shape or order in memory was never laid out here, and keeps its own."""
        shape, strides = self.__dict__.pop("_fused_before", (None, ()))
        for parameter in self.parameters():
            if parameter.shape == shape and parameter.is_contiguous(memory_format=CHANNELS_LAST):
                lay_out(parameter, strides)

    def forward(self, input: Tensor) -> Tensor:
        if transforming():
            # By the weight's layout the image would be in channels_last, whose group norm torch cannot differentiate in
            # forward mode.
            transformed: Tensor = self._conv_forward(input, self.weight.contiguous(), self.bias)
            return transformed
        if self._fused_widened(input):
            bias = None if self.bias is None else self.bias.float()
            widened: Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
            return widened.to(input.dtype)
        if not self._fused_as_product(input):
            result: Tensor = super().forward(input)
            return result
        weight, (down, right) = self.weight, self.stride
        matrix = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
        rows = input.permute(0, 2, 3, 1) if weight.shape[2:] == (1, 1) else self._fused_patches(input, down, right)
        return linear(rows, matrix, self.bias, self._fused_state.execution).permute(0, 3, 1, 2)

    def _fused_widened(self, x: Tensor) -> bool:
        by_plan = self._fused_state.execution is Plan.ONEDNN
        return by_plan and _IS_PATCHED not in self.__dict__ and suits_convolution(x, self.weight, self.bias)

    def _fused_as_product(self, x: Tensor) -> bool:
        weight = self.weight
        if (
            x.device.type != "cpu"
            or x.dim() != 4
            or x.dtype is not weight.dtype
            or x.dtype not in (torch.float32, torch.float64)
            or x.shape[1] != weight.shape[1]
            or self.groups != 1
            or self.padding_mode != "zeros"
            or self.dilation != (1, 1)
            or isinstance(self.padding, str)
            or differentiated(x, weight, self.bias)
            or torch.is_autocast_enabled("cpu")
            or compiling()
            or not weight.is_contiguous(memory_format=CHANNELS_LAST)
            or not x.is_contiguous(memory_format=CHANNELS_LAST)
            or not suggests_channels_last(x)
            or _IS_PATCHED in self.__dict__
        ):
            return False
        if weight.shape[2:] == (1, 1):
            return self.stride == (1, 1) and not any(self.padding)
        # Either the image's patches are copied, or the weight: whichever is smaller.
        pixels = x.shape[0] * x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        rows, columns = (x.shape[2] + 2 * self.padding[0], x.shape[3] + 2 * self.padding[1])
        return pixels < weight.shape[0] and rows >= weight.shape[2] and columns >= weight.shape[3]

    def _fused_patches(self, x: Tensor, down: int, right: int) -> Tensor:
        """(B, C, Y, X) in channels_last -> (B, Y', X', K * L * C)."""
        tall, wide = self.padding
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, wide, wide, tall, tall))
        high, long = self.weight.shape[2:]
        patches = padded.unfold(1, high, down).unfold(2, long, right)
        return patches.permute(0, 1, 2, 4, 5, 3).flatten(3)


class FusedGEGLU(Swapped):
    """Mixin before diffusers' ``GEGLU``: ``first * gelu(second)`` of a projection's halves."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or differentiated(hidden_states, *self.parameters()):
            result: Tensor = super().forward(hidden_states, *args, **kwargs)
            return result
        hidden, gate = apply(self.proj, hidden_states, self._fused_state.execution).chunk(2, dim=-1)
        return self.gelu(gate).mul_(hidden)


class FusedFeedForward(Swapped):
    """Mixin before diffusers' ``FeedForward``."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            result: Tensor = super().forward(hidden_states, *args, **kwargs)
            return result
        for module in self.net:
            hidden_states = apply(module, hidden_states, self._fused_state.execution)
        return hidden_states


class FusedTransformer2D(Swapped):
    """Mixin before diffusers' ``Transformer2DModel``: tokens (B, Y * X, C) are an image in channels_last already."""

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        # Under autocast inductor cannot lower a convolution of tokens that are only seen as an image where shapes are dynamic.
        if transforming() or (compiling() and torch.is_autocast_enabled(hidden_states.device.type)):
            original: Any = super()
            transformed: Tensor = original._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
            return transformed
        if self.use_linear_projection:
            hidden_states = apply(self.proj_out, hidden_states, self._fused_state.execution)
        image = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            image = self.proj_out(image)
        return image + residual


class FusedGroupNorm(Swapped):
    """Mixin before ``nn.GroupNorm``."""

    def forward(self, input: Tensor) -> Tensor:
        if self._fused_by_channels(input):
            return group_norm_by_channels(input, self.num_groups, self.weight, self.bias, self.eps)
        result: Tensor = super().forward(input)
        return result

    def _fused_by_channels(self, x: Tensor) -> bool:
        return (
            x.is_cuda
            and x.dtype in HALVES
            and x.dim() == 4
            and x.shape[1:].numel() >= LARGE_IMAGE
            and self.weight is not None
            and self.bias is not None
            and self.weight.dtype is x.dtype
            and x.shape[1] == self.num_channels
            and x.is_contiguous(memory_format=CHANNELS_LAST)
            and not compiling()
            and not torch.is_autocast_enabled("cuda")
            and not differentiated(x, self.weight, self.bias)
        )


def group_norm_by_channels(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group norm (Wu and He, 2018) of x (B, C, Y, X) in channels_last: mean and variance of each channel, from these a group's
    (Chan, Golub and LeVeque, 1979), and one pass to apply them, all in float32; ``weight`` and ``bias`` are (C,).

    torch's kernel for CUDA copies such an image to contiguous memory first, and reads it with one block for each group.
    """
    batch, channels = x.shape[:2]
    means, variances = (one.view(batch, groups, -1) for one in _of_each_channel(x))
    mean = means.mean(-1, keepdim=True)
    variance = (variances + (means - mean).square()).mean(-1, keepdim=True)
    scale = (variance + eps).rsqrt() * weight.view(groups, -1)
    shift = bias.view(groups, -1) - mean * scale
    scale, shift = (one.view(batch, channels, 1, 1) for one in (scale, shift))
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x))


def _of_each_channel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (B, C) of x (B, C, Y, X) on CUDA, in float32, by the kernel of synchronised batch norm: in one pass,
    and without what a difference of two sums loses. It takes all images for one, and gives 1 / deviation."""
    each = [torch.batch_norm_stats(image, _HARDLY_ANY) for image in x.split(1)]
    means, inverse = (torch.stack(one) for one in zip(*each, strict=True))
    return means, inverse.square().reciprocal()


_HARDLY_ANY = 1e-20
"""Added to a variance: where both are 0, the kernel gives 0 for 1 / deviation."""
