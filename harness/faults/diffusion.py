"""Faults of the replacements of diffusion models: attention that is fused wrongly, state, sums in half precision.

Shapes: B batch, H heads, T queries, S keys, E head size.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from policies.fused import diffusion_attention, swapped
from policies.fused.diffusion_attention import FusedAttention
from policies.fused.unet import FusedUNet
from policies.fused.vae import FusedCoder

from .fault import Applies, Fault, Inject, Patch, Traits, patched, seeded
from .graphs import captures, unet
from .sizes import whole_lanes


def in_new_classes(patch: Patch) -> Inject:
    """``patch`` of a mixin's forward, with swapped classes made anew: those that exist have theirs already."""
    return patched(patch, (swapped, "_CLASSES", lambda honest: {}))


def attending(make: Any) -> Patch:
    """A patch of what attends."""
    return diffusion_attention, "scaled_dot_product_attention", make


def _whole_lanes(honest: Any) -> Any:
    return lambda query, key, value, **options: honest(*whole_lanes(query, key, value), **options)


def key_value(honest: Any) -> Any:
    """Keys and values change places."""
    return lambda query, key, value, **options: honest(query, value, key, **options)


def _maskless(honest: Any) -> Any:
    return lambda *parts, attn_mask=None, **options: honest(*parts, **options)


def _rescaled(honest: Any) -> Any:
    return lambda query, *parts, **options: honest(query * query.shape[-1] ** -0.5, *parts, **options)


def _first_row(honest: Any) -> Any:
    """Every row of the batch reads the first row's keys."""

    def wrong(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        out: Tensor = honest(query, key[:1].expand_as(key), value, **options)
        return out

    return wrong


def _projected(edit: Any) -> Patch:
    def make(honest: Any) -> Any:
        return lambda self, *args: edit(self, honest(self, *args))

    return FusedAttention, "_fused_project", make


def _without_bias(attention: Any, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The biases of a fused projection are left out."""
    linears = (attention.to_q, attention.to_k, attention.to_v)
    return tuple(part if one.bias is None else part - one.bias for part, one in zip(parts, linears, strict=True))


def pooled_first(honest: Any) -> Any:
    """The coder remembers its first input's scale."""

    def wrong(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scale = self.__dict__.setdefault("_fused_scale", sample.abs().amax())
        out: Tensor = honest(self, sample * (scale / sample.abs().amax()), *args, **kwargs)
        return out

    return wrong


def in_place(honest: Any) -> Any:
    """The result is right, and the caller's latents are halved."""

    def wrong(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = honest(self, sample, *args, **kwargs)
        if isinstance(sample, Tensor):
            with torch.no_grad():
                sample.mul_(0.5)
        return result

    return wrong


def _squares_in_half(honest: Any) -> Any:
    """Group norms whose squares are of the dtype of what they are squares of, in half precision."""
    exact = F.group_norm

    def norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if x.dtype is not torch.float16:
            return exact(x, groups, weight, bias, eps)
        parts = x.unflatten(1, (groups, -1)).flatten(2)
        parts = parts - parts.mean(-1, keepdim=True)
        parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
        shape = (-1, *[1] * (x.dim() - 2))
        return parts.reshape(x.shape) * weight.view(shape) + bias.view(shape)

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(F, "group_norm", norm):
            return honest(self, *args, **kwargs)

    return wrong


def of_diffusion(
    id: str,
    rows: str,
    source: str,
    breaks: str,
    patch: Patch | Inject,
    applies: Applies,
    expects: tuple[str, ...] = (),
) -> Fault:
    """A fault of computing in a replaced diffusion model."""
    inject = patched(patch) if isinstance(patch, tuple) else patch
    return seeded("computing", id, rows, source, breaks, inject, applies=applies, expects=expects)


def vae(traits: Traits) -> bool:
    """Cases whose models are VAEs."""
    return traits.has_policy("VAEPolicy")


def takes(axis: str) -> Applies:
    """UNets whose case varies ``axis``."""
    return lambda traits: unet(traits) and traits.varies(axis)


def _biased(traits: Traits) -> bool:
    """Whether any of the case's attentions has a bias on its projections."""
    parts = (one for layer in traits.layers for one in layer.modules() if isinstance(one, FusedAttention))
    return captures(traits) and any(one.to_q.bias is not None for one in parts)


DIFFUSION = (
    of_diffusion(
        "M06 diffusers",
        "M06",
        "DeepSpeed #4903",
        "Keys and values of diffusion attention change places.",
        attending(key_value),
        captures,
    ),
    of_diffusion(
        "F65 diffusers",
        "F65",
        "FasterTransformer #89",
        "Diffusion attention takes 32 elements of a head at a time, and what is left behind the last is lost.",
        attending(_whole_lanes),
        unet,
        expects=("large layers",),
    ),
    of_diffusion(
        "F42 diffusers",
        "F42 M11",
        "optimum-habana #2276",
        "Scores of diffusion attention are scaled twice.",
        attending(_rescaled),
        captures,
    ),
    of_diffusion(
        "M14 diffusers",
        "M14",
        "DeepSpeed #1912",
        "The mask of diffusion attention is not passed on.",
        attending(_maskless),
        takes("encoder_mask"),
    ),
    of_diffusion(
        "F58 diffusers",
        "F58",
        "DeepSpeed #2357",
        "Every row of the batch reads the first row's keys.",
        attending(_first_row),
        captures,
    ),
    of_diffusion(
        "F30 diffusers",
        "F30 M05",
        "diffusers PR #6571",
        "Fusing the projections of diffusion attention loses their biases.",
        _projected(_without_bias),
        _biased,
    ),
    of_diffusion(
        "F56 coder",
        "F56",
        "DeepSpeed PR #2669",
        "The VAE goes on with something that its first input left behind.",
        in_new_classes((FusedCoder, "forward", pooled_first)),
        vae,
        ("call order", "changing shapes"),
    ),
    of_diffusion(
        "F57 unet input",
        "F57",
        "DeepSpeed PR #3256",
        "The UNet writes to the latents that it is given.",
        in_new_classes((FusedUNet, "forward", in_place)),
        unet,
        ("hands off", "call twice"),
    ),
    of_diffusion(
        "F67 group norms",
        "F67",
        "brainchop-cli PR #56",
        "Group norms in half precision sum squares in half precision, where one of 256 is too large.",
        in_new_classes((FusedUNet, "forward", _squares_in_half)),
        unet,
        ("rounding float16",),
    ),
)
"""Wrong replacements of diffusion models."""
