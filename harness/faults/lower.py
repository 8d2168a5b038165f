"""Faults of kernels that exist in lower dtypes alone: exact arithmetic runs other code, which is right."""

from __future__ import annotations

import functools
from typing import Any

import torch

from policies.fused import linear as fused_linear
from policies.fused.attention import FusedAttention
from policies.fused.transformer import FusedTransformerLayer
from policies.fused.unet import FusedUNet
from policies.fused.vae import FusedCoder

from ..nested import tensors_in
from ..rounding.statistic import DTYPES
from .around import shared_workspace
from .cache import caches, own_copy, past_unused, stale_prompt, updating
from .calling import as_if_in_order, in_place, second_copy
from .diffusion import attending, in_new_classes, key_value, of_diffusion, pooled_first, vae
from .diffusion import in_place as unet_in_place
from .fault import Applies, Fault, Inject, Patch, layered, miscomputing, patched
from .graphs import captures, unet
from .sizes import whole_lanes
from .workspace import finishing, sized_by_first_call, whole_blocks

_ROUNDING = tuple(f"rounding {dtype}" for dtype in DTYPES)


def _below_float64(patch: Patch) -> Patch:
    """``patch`` of a function whose first tensor, or list of them, is not float64."""
    owner, name, make = patch

    def gated(honest: Any) -> Any:
        wrong = make(honest)

        @functools.wraps(honest)
        def either(*args: Any, **kwargs: Any) -> Any:
            given = next(tensors_in([*args, kwargs]))
            return (honest if given.dtype is torch.float64 else wrong)(*args, **kwargs)

        return either

    return owner, name, gated


def _lower_diffusion(id: str, source: str, breaks: str, inject: Inject, applies: Applies, *expects: str) -> Fault:
    """A fault of lower dtypes in a replaced diffusion model."""
    return of_diffusion(id, id.split()[0], source, breaks, inject, applies, (*expects, *_ROUNDING))


def _lower(id: str, source: str, breaks: str, patch: Patch, applies: Applies, *expects: str) -> Fault:
    """A fault of lower dtypes; ``expects`` is for one that is noticed elsewhere, too."""
    expects = (*expects, *_ROUNDING)
    return miscomputing(id, id.split()[0], source, breaks, _below_float64(patch), applies=applies, expects=expects)


LOWER = (
    _lower(
        "F62 lower",
        "DeepSpeed PR #7428",
        "The kernels of lower dtypes do not use keys and values of earlier calls.",
        updating(past_unused),
        caches,
    ),
    _lower(
        "F56 lower",
        "DeepSpeed PR #2196, PR #2669",
        "The kernels of lower dtypes go on from the keys that the last prompt left on the layer.",
        updating(stale_prompt),
        caches,
    ),
    _lower(
        "F61 lower",
        "DeepSpeed #2506",
        "The kernels of lower dtypes do not see the caller reorder its cache.",
        updating(own_copy),
        caches,
    ),
    _lower(
        "F60 lower",
        "DeepSpeed #3402",
        "The workspace of lower dtypes has the size of the first call.",
        (FusedAttention, "_finish", sized_by_first_call),
        layered,
    ),
    _lower(
        "F64 lower threads",
        "flashinfer PR #4481, cuLA PR #108",
        "Two threads share a workspace of lower dtypes, and one writes over what the other has yet to read.",
        (FusedTransformerLayer, "__call__", shared_workspace),
        layered,
    ),
    _lower(
        "F65 lower heads",
        "FasterTransformer #89, flashinfer #4299",
        "The attention kernel of lower dtypes takes 32 elements of a head at a time, and what is left behind the last is lost.",
        finishing(whole_lanes),
        layered,
    ),
    _lower(
        "F65 lower",
        "DeepSpeed #785",
        "The softmax kernel of lower dtypes works in blocks of keys, and what is left behind the last is lost.",
        finishing(whole_blocks),
        layered,
    ),
    _lower(
        "F79 lower",
        "DeepSpeed #1332, diffusers #11903",
        "Weights that are packed for lower dtypes are a second copy, which updates do not reach.",
        (fused_linear, "_take_over", second_copy),
        lambda traits: traits.joins,
    ),
    _lower(
        "F48 lower",
        "TransformerEngine PR #1017, vllm PR #3324",
        "The kernels of lower dtypes read hidden states as if they lay in order in memory.",
        (FusedTransformerLayer, "__call__", as_if_in_order),
        layered,
    ),
    _lower(
        "F57 lower",
        "DeepSpeed PR #3256",
        "The kernels of lower dtypes write the result over the caller's input.",
        (FusedTransformerLayer, "__call__", in_place),
        layered,
        "hands off",
    ),
)
"""Wrong wherever people run models, and right where they are compared."""

LOWER_DIFFUSION = (
    _lower_diffusion(
        "M06 lower diffusers",
        "InvokeAI #2329",
        "Diffusion attention takes keys for values in lower dtypes.",
        patched(_below_float64(attending(key_value))),
        captures,
    ),
    _lower_diffusion(
        "F56 lower coder",
        "DeepSpeed PR #2669",
        "In lower dtypes the VAE goes on with something that its first input left behind.",
        in_new_classes(_below_float64((FusedCoder, "forward", pooled_first))),
        vae,
    ),
    _lower_diffusion(
        "F57 lower unet input",
        "DeepSpeed PR #3256",
        "In lower dtypes the UNet writes to the latents that it is given.",
        in_new_classes(_below_float64((FusedUNet, "forward", unet_in_place))),
        unet,
        "hands off",
    ),
)
"""The same of diffusion models."""
