"""Faults of the replacements of diffusion models: arguments that get lost, attention that is fused wrongly.

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
from policies.fused.vae import FusedCoder, FusedVAE

from .fault import Applies, Fault, Inject, Patch, Traits, patched, seeded
from .graphs import captures
from .sizes import whole_lanes


def _without(*names: str) -> Patch:
    """A patch of the UNet's call: arguments that do not reach the original's forward."""

    def make(honest: Any) -> Any:
        def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
            order = ("sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond")
            args = tuple(None if name in names else one for name, one in zip(order, args, strict=False))
            return honest(self, *args, **{name: one for name, one in kwargs.items() if name not in names})

        return wrong

    return FusedUNet, "forward", make


def in_new_classes(patch: Patch) -> Inject:
    """``patch`` of a mixin's forward, with swapped classes made anew: those that exist have theirs already."""
    return patched(patch, (swapped, "_CLASSES", lambda honest: {}))


def _other_form(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.pop("return_dict", True)
        return honest(self, *args, return_dict=not wanted, **kwargs)

    return wrong


def _vae_forward(honest: Any) -> Any:
    """A forward of the wrapper's own, which takes ``generator`` and forgets it. The honest one is the original's."""

    def wrong(self: FusedVAE, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return self._fused_original.forward(self, *args, **kwargs)

    return wrong


def _undefined_flag(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AttributeError("object has no attribute 'cuda_graph_created'")

    return wrong


def _old_signature(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("attention() takes 6 positional arguments but 7 were given")

    return wrong


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


def unet(traits: Traits) -> bool:
    """Cases whose models are UNets."""
    return traits.has_policy("UNetPolicy")


def vae(traits: Traits) -> bool:
    """Cases whose models are VAEs."""
    return traits.has_policy("VAEPolicy")


def _takes(axis: str) -> Applies:
    return lambda traits: unet(traits) and traits.varies(axis)


def _biased(traits: Traits) -> bool:
    """Whether any of the case's attentions has a bias on its projections."""
    parts = (one for layer in traits.layers for one in layer.modules() if isinstance(one, FusedAttention))
    return captures(traits) and any(one.to_q.bias is not None for one in parts)


DIFFUSION = (
    of_diffusion(
        "F75 timestep_cond",
        "F75 F70",
        "DeepSpeed PR #8408, PR #4663",
        "Guidance embeddings do not reach the UNet.",
        in_new_classes(_without("timestep_cond")),
        _takes("guidance"),
    ),
    of_diffusion(
        "F75 added_cond_kwargs",
        "F75 F70",
        "DeepSpeed PR #8408, PR #4770",
        "Pooled text and time ids do not reach the UNet.",
        in_new_classes(_without("added_cond_kwargs")),
        _takes("addition"),
    ),
    of_diffusion(
        "F70 class_labels",
        "F70",
        "DeepSpeed PR #3142",
        "Class labels do not reach the UNet.",
        in_new_classes(_without("class_labels")),
        _takes("class_embedding"),
    ),
    of_diffusion(
        "F70 encoder mask",
        "F70",
        "DeepSpeed PR #2699",
        "The mask over the text does not reach the UNet.",
        in_new_classes(_without("encoder_attention_mask")),
        _takes("encoder_mask"),
    ),
    of_diffusion(
        "F70 residuals",
        "F70",
        "DeepSpeed PR #4911",
        "Residuals of a side model do not reach the UNet.",
        in_new_classes(
            _without(
                "down_block_additional_residuals",
                "mid_block_additional_residual",
                "down_intrablock_additional_residuals",
            )
        ),
        _takes("residuals"),
    ),
    of_diffusion(
        "F75 return_dict",
        "F75 F16",
        "DeepSpeed PR #8408",
        "return_dict comes in at the place of another argument.",
        in_new_classes((FusedUNet, "forward", _other_form)),
        unet,
    ),
    of_diffusion(
        "F76 undefined",
        "F76",
        "DeepSpeed PR #8413",
        "A method of the VAE reads an attribute that nobody set.",
        in_new_classes((FusedCoder, "forward", _undefined_flag)),
        vae,
    ),
    of_diffusion(
        "F76 generator",
        "F76",
        "DeepSpeed PR #8413",
        "The VAE's forward takes a generator and forgets it.",
        in_new_classes((FusedVAE, "forward", _vae_forward)),
        vae,
    ),
    of_diffusion(
        "F34 diffusers",
        "F34",
        "DeepSpeed PR #4656, PR #3218",
        "A shared attention has a new signature, and diffusion models still call the old one.",
        (FusedAttention, "_fused_attend", _old_signature),
        captures,
    ),
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
        _takes("encoder_mask"),
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
