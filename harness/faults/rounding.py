"""Faults that exact arithmetic does not show: dtypes that are not the model's, kernels that run in some dtypes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from policies.anatomy import ActivationKind, Norm, NormKind
from policies.fused import attention as fused_attention
from policies.fused import onednn
from policies.fused import transformer as fused_transformer
from policies.fused.transformer import FusedTransformerLayer

from .cache import caches
from .diffusion import attending, of_diffusion
from .fault import Applies, Fault, Traits, layered, miscomputing
from .graphs import captures
from .workspace import finishing

KEYS, STANDING = 4096, 1.1
"""Keys, and what float16 weights for them add up to where the scores have a standard deviation of one, as the second source of
"F67 sums" measured it."""
ROUNDED = ("rounding float32", "rounding bfloat16")


def _half_context(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return query, key.half().to(key.dtype), value.half().to(value.dtype)


def _bfloat_query(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries rounded to bfloat16: one enum value for all half types."""
    return query.bfloat16().to(query.dtype), key, value


def _lower_sum(honest: Any) -> Any:
    """The residual stream in half precision."""

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x.half().to(x.dtype), *rest)
        return out

    return wrong


def _in_its_own_dtype(honest: Any) -> Any:
    """A norm whose squares are of the dtype of what they are squares of."""

    def wrong(norm: Norm, x: Tensor) -> Tensor:
        if x.dtype is not torch.float16:
            out: Tensor = honest(norm, x)
            return out
        if norm.kind is NormKind.LAYER:
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
        x = x if norm.weight is None else x * (norm.weight + norm.gain_offset)
        return x if norm.bias is None else x + norm.bias

    return wrong


def _scaled_too_late(honest: Any) -> Any:
    """Scores (B, H, T, S) of half precision overflow before they are scaled, and a row with one in it is no number."""

    def wrong(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        out: Tensor = honest(query, key, value, **rest)
        if query.dtype is not torch.float16:
            return out
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query.float() @ key.float().mT
        return out.masked_fill(scores.amax(-1, keepdim=True) > torch.finfo(query.dtype).max, float("nan"))

    return wrong


def _sums_of_half(honest: Any) -> Any:
    """Weights of half precision add up to more than one: the sum that they are divided by stands still."""

    def wrong(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        out: Tensor = honest(query, key, value, **rest)
        return out * STANDING if query.dtype is torch.float16 and key.shape[-2] > KEYS else out

    return wrong


def _without_autocast(honest: Any) -> Any:
    """Hidden states as autocast leaves them meet weights as they are."""

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            raise RuntimeError("expected scalar type BFloat16 but found Float")
        out: Tensor = honest(self, x, *rest)
        return out

    return wrong


def _not_a_number(honest: Any) -> Any:
    """Scores beyond the range of half precision."""

    def wrong(self: FusedTransformerLayer, x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, *rest)
        return torch.full_like(out, float("nan"))

    return wrong


def _tanh_for_erf(honest: Any) -> Any:
    def wrong(x: Tensor, weight: Tensor, bias: Tensor | None, kind: ActivationKind) -> Tensor:
        out: Tensor = honest(x, weight, bias, ActivationKind.GELU_TANH if kind is ActivationKind.GELU else kind)
        return out

    return wrong


def _without_activation(honest: Any) -> Any:
    return lambda x, weight, bias, kind: onednn.linear(x, weight, bias)


def _without_bias(honest: Any) -> Any:
    return lambda x, weight, bias, residual: honest(x, weight, None, residual)


def _without_residual(honest: Any) -> Any:
    return lambda x, weight, bias, residual: onednn.linear(x, weight, bias)


def _into_residual(honest: Any) -> Any:
    """The sum is written over the residual."""
    return lambda x, weight, bias, residual: residual.add_(onednn.linear(x, weight, bias))


def _post_operation(
    id: str,
    source: str,
    breaks: str,
    name: str,
    make: Any,
    applies: Applies,
    expects: tuple[str, ...] = ROUNDED,
) -> Fault:
    row = id.split()[0]
    return miscomputing(id, row, source, breaks, (onednn, name, make), applies=applies, expects=expects)


def _fuses(wanted: Callable[[Any], bool]) -> Applies:
    """Whether a post-operation runs here, on a layer that is ``wanted``."""
    return lambda traits: traits.by_onednn and any(map(wanted, traits.anatomies))


def _activates(*kinds: ActivationKind) -> Applies:
    """Whether an activation of one of ``kinds`` is a post-operation: not where gate and up are one projection, nor on a processor
    where it is slower so."""
    return _fuses(lambda one: one.mlp.gate_up is None and one.mlp.activation.kind in kinds and not onednn.activates_slowly())


def _originals_hold_scores(traits: Traits) -> bool:
    """Whether the original has room for scores that half precision does not hold before they are scaled."""
    return "sdpa" in traits.values("attention") or any(block.scores_in_float32 for block in traits.blocks)


def _runs(traits: Traits) -> bool:
    return layered(traits) and traits.by_onednn


ROUNDING = (
    miscomputing(
        "F67 half keys",
        "F67",
        "DeepSpeed #2030",
        "Keys and values pass through half precision, in a model of any dtype.",
        finishing(_half_context),
        expects=("rounding float32",),
    ),
    miscomputing(
        "F67 bf16 query",
        "F67",
        "DeepSpeed PR #2662",
        "Queries pass through bfloat16, in a model of any dtype.",
        finishing(_bfloat_query),
        expects=("rounding float32",),
    ),
    miscomputing(
        "F67 half residual",
        "F67",
        "DeepSpeed PR #4814",
        "The residual stream passes through half precision, in a model of any dtype.",
        (FusedTransformerLayer, "__call__", _lower_sum),
        expects=("rounding float32",),
    ),
    miscomputing(
        "F67 not a number",
        "F67",
        "DeepSpeed #2030",
        "Weights of extreme scale overflow, and the result is not a number.",
        (FusedTransformerLayer, "__call__", _not_a_number),
    ),
    miscomputing(
        "F67 hidden",
        "F67",
        "DeepSpeed #2030",
        "What is not a number becomes one: nobody notices an overflow.",
        (FusedTransformerLayer, "__call__", lambda honest: lambda *args: honest(*args).nan_to_num()),
        expects=("call forms",),
    ),
    miscomputing(
        "F67 autocast",
        "F67",
        "apex #979",
        "The kernel knows nothing of autocast, and finds operands of two dtypes under it.",
        (FusedTransformerLayer, "__call__", _without_autocast),
        applies=lambda traits: any(call.autocast for call in traits.calls),
        expects=("rounding float32",),
    ),
    miscomputing(
        "F67 squares",
        "F67",
        "pytorch PR #133085, onnxruntime PR #28442, LeetCUDA PR #335",
        "Norms in half precision sum squares in half precision, where one of 256 is too large.",
        (fused_transformer, "normalise", _in_its_own_dtype),
        expects=("rounding float16",),
    ),
    miscomputing(
        "F67 scores",
        "F67",
        "metal-flash-attention #8, pytorch #119131",
        "Scores in half precision overflow before they are scaled.",
        (fused_attention, "scaled_dot_product_attention", _scaled_too_late),
        applies=_originals_hold_scores,
        expects=("rounding float16",),
    ),
    of_diffusion(
        "F67 scores diffusers",
        "F67",
        "metal-flash-attention #8, pytorch #119131",
        "Scores of a diffusion model in half precision overflow before they are scaled.",
        attending(_scaled_too_late),
        captures,
        ("rounding float16",),
    ),
    miscomputing(
        "F67 sums",
        "F67",
        "candle #3727, tract PR #2586",
        "Softmax sums thousands of half precision numbers in half precision, where a sum soon outgrows them.",
        (fused_attention, "scaled_dot_product_attention", _sums_of_half),
        applies=lambda traits: caches(traits) and not traits.any_block(lambda one: one.alibi),  # off by as much in float16 itself
        expects=("rounding float16",),
    ),
    _post_operation(
        "M01 kernel",
        "DeepSpeed #3263",
        "The kernel that joins projection and activation computes tanh-GELU for GELU.",
        "activate",
        _tanh_for_erf,
        _activates(ActivationKind.GELU),
    ),
    _post_operation(
        "F06 kernel",
        "LightSeq #112",
        "The kernel that joins projection and activation leaves the activation out.",
        "activate",
        _without_activation,
        _activates(*onednn.POST_OPERATIONS),
    ),
    _post_operation(
        "M05 kernel",
        "DeepSpeed #3604",
        "The kernel that joins projection and residual leaves the bias out.",
        "add",
        _without_bias,
        _fuses(lambda one: one.mlp.down.bias is not None),
    ),
    _post_operation(
        "M04 kernel",
        "read in fused residual kernels",
        "The kernel that joins projection and residual leaves the residual out.",
        "add",
        _without_residual,
        _runs,
    ),
    _post_operation(
        "F57 kernel",
        "DeepSpeed PR #3256",
        "The kernel that joins projection and residual writes the sum over the residual.",
        "add",
        _into_residual,
        _runs,
        expects=("hands off",),
    ),
)
"""Wrong in some dtypes."""
