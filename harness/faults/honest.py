"""Honest variants: rewrites that compute the same function another way, and must not be flagged.

Shapes: B batch, H heads, T queries, S keys, E head size, D inputs, N outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from policies.anatomy import Activation, ActivationKind, FusedQKV, Norm, NormKind, QKVLayout, SplitQKV
from policies.fused import attention as fused_attention
from policies.fused import linear as fused_linear
from policies.fused import transformer as fused_transformer
from policies.fused.attention import FusedAttention
from policies.fused.linear import Projection
from policies.fused.transformer import FusedTransformerLayer

from ..trial import Replacer
from .edits import change
from .fault import Applies, Fault, Inject, Patch, Traits, layered, patched
from .graphs import captures, emulated
from .layout import attending
from .masks import allowed_by, like


def _in_two_halves(honest: Any) -> Any:
    """Inputs summed in two halves, the second first."""

    def linear(self: Projection, x: Tensor, emit: Any) -> Tensor:
        half = x.shape[-1] // 2
        out = F.linear(x[..., half:], self.weight[:, half:]) + F.linear(x[..., :half], self.weight[:, :half])
        out = out if self.bias is None else out + self.bias
        emit(self.name, out)
        return out

    return linear


def _strided_weight(honest: Any) -> Any:
    """The product with a weight of other strides."""

    def linear(self: Projection, x: Tensor, emit: Any) -> Tensor:
        other = self.weight.contiguous() if self.transposed else self.weight.t().contiguous().t()
        out: Tensor = honest(dataclasses.replace(self, stored=other, held=None, transposed=False), x, emit)
        return out

    return linear


def _sum_first(honest: Any) -> Any:
    """The residual is added to the bias before the product."""

    def plus(self: Projection, x: Tensor, residual: Tensor, emit: Any) -> Tensor:
        product = F.linear(x, self.weight)
        emit(self.name, product if self.bias is None else product + self.bias)
        return product + (residual if self.bias is None else residual + self.bias)

    return plus


def _by_hand(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Attention as written down: scores, mask, softmax, sum (the way of ``eager``). Scores of float16 are float32, as in torch's
    kernel, which large ones do not overflow. A query that sees no key gets nothing, as torch's kernel has it: a mask of float32's
    smallest number is minus infinity in bfloat16, which autocast makes of it."""
    mask, scale = options["attn_mask"], options["scale"]
    if options["enable_gqa"]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    if query.dtype is torch.float16:
        query, key = query.float(), key.float()
    scores = (query @ key.transpose(-2, -1)) * scale
    if options["is_causal"]:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, torch.finfo(scores.dtype).min)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    blind = scores.amax(dim=-1, keepdim=True).isneginf()
    return scores.softmax(dim=-1).masked_fill(blind, 0.0).to(value.dtype) @ value  # a mask may be of a wider dtype


def _scaled_queries(honest: Any) -> Any:
    return lambda query, *rest, scale, **options: honest(query * scale, *rest, scale=1.0, **options)


def _heads_reversed(honest: Any) -> Any:
    """Heads in another order, and their results put back in place."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask = options["attn_mask"]
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            options["attn_mask"] = mask.flip(1)
        out: Tensor = honest(query.flip(1), key.flip(1), value.flip(1), **options)
        return out.flip(1)

    return attend


def _keys_reversed(honest: Any) -> Any:
    """The sum over keys the other way round; a causal flag becomes the mask that it stands for."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask = options["attn_mask"]
        if options["is_causal"]:
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        mask = None if mask is None else mask.expand(*mask.shape[:-1], key.shape[-2]).flip(-1)
        over = options.get("put_over")
        options = {**options, "attn_mask": mask, "is_causal": False, "put_over": None if over is None else over.flip(-1)}
        out: Tensor = honest(query, key.flip(-2), value.flip(-2), **options)
        return out

    return attend


def _row_by_row(honest: Any) -> Any:
    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        mask = options["attn_mask"]
        rows = []
        for row in range(query.shape[0]):
            own = mask[row : row + 1] if mask is not None and mask.dim() == 4 and mask.shape[0] > 1 else mask
            one = slice(row, row + 1)
            rows.append(honest(query[one], key[one], value[one], **{**options, "attn_mask": own}))
        return torch.cat(rows) if rows else honest(query, key, value, **options)

    return attend


def _norm_by_hand(honest: Any) -> Any:
    """Mean and variance apart, and one multiplication at the end."""

    def normalise(norm: Norm, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if norm.kind is not NormKind.LAYER:
            weight = 1.0 if norm.weight is None else norm.weight + norm.gain_offset
            length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
            return (wide / torch.sqrt(length * length + norm.eps)).to(x.dtype) * weight
        centred = wide - wide.mean(-1, keepdim=True)
        unit = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + norm.eps)
        unit = unit if norm.weight is None else unit * (norm.weight + norm.gain_offset)
        return (unit if norm.bias is None else unit + norm.bias).to(x.dtype)

    return normalise


def _activation_by_hand(honest: Any) -> Any:
    """Kernels' functions as formulas."""

    def activate(activation: Activation, x: Tensor) -> Tensor:
        match activation.kind:
            case ActivationKind.GELU:
                return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
            case ActivationKind.GELU_TANH:
                return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
            case ActivationKind.SILU:
                return x / (1.0 + torch.exp(-x))
            case ActivationKind.RELU:
                return torch.where(x > 0, x, torch.zeros_like(x))
        out: Tensor = honest(activation, x)
        return out

    return activate


def _unpacked(honest: Any) -> Any:
    return lambda linears, shared: False


def _fused_as_split(honest: Any) -> Any:
    """One blocked QKV projection computed as three."""

    def init(self: FusedAttention, attention: Any, plan: Any, **options: Any) -> None:
        honest(self, change(attention, qkv=_split(attention)), plan, **options)

    return init


def _views_watched(honest: Any) -> Any:
    """Parameters whose views it keeps are to be watched for other memory, like those that a replacement joins."""

    def joined(self: FusedAttention) -> tuple[Tensor, ...]:
        every = [tensor for linear in self.attention.qkv.linears for tensor in linear.parameters.values()]
        bases = [tensor._base for tensor in every if tensor._base is not None]
        return (*honest.fget(self), *bases)

    return property(joined)


def _split(attention: Any) -> Any:
    qkv = attention.qkv
    if not isinstance(qkv, FusedQKV) or qkv.layout is not QKVLayout.BLOCKED:
        return qkv
    sizes = [n * attention.head_size for n in (attention.heads, attention.kv_heads, attention.kv_heads)]
    names = ("query", "key", "value")
    parts = {}
    for place, name in enumerate(names):
        rows = slice(sum(sizes[:place]), sum(sizes[: place + 1]))
        with torch.inference_mode(mode=False), torch.enable_grad():  # whoever made them in another mode would cut gradients off
            view = qkv.linear.weight_out_in[rows]
            bias = None if qkv.linear.bias is None else qkv.linear.bias[rows]
        parts[name] = change(qkv.linear, name=f"{qkv.linear.name} {name}", weight=view, bias=bias, transposed=False)
    return SplitQKV(**parts)


def _garbage_in_padding(honest: Any) -> Any:
    """Positions that nobody attends to hold anything at all."""

    def call(self: FusedTransformerLayer, x: Tensor, call: Any, *rest: Any) -> Tensor:
        out: Tensor = honest(self, x, call, *rest)
        mask = call.mask
        if mask is None or mask.shape[-2:] != (x.shape[1], x.shape[1]):
            return out
        unseen = ~allowed_by(mask).any(dim=(1, 2)).expand(x.shape[0], -1)
        return torch.where(unseen[..., None], 3.0 - out, out)

    return call


def _other_mask_kind(honest: Any) -> Any:
    """Bool masks become floats to add; the scores say the same."""

    def resolve(*args: Any) -> tuple[Tensor | None, bool]:
        mask, causal = honest(*args)
        if mask is not None and mask.dtype == torch.bool:
            query = args[3]
            mask = like(query.new_empty(0), mask)
        return mask, causal

    return resolve


@contextlib.contextmanager
def _two_threads(replacer: Replacer) -> Iterator[Replacer]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield replacer
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _math_kernel(replacer: Replacer) -> Iterator[Replacer]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield replacer


def _variant(id: str, breaks: str, inject: Inject | Patch, applies: Applies = layered, passes: tuple[str, ...] = ()) -> Fault:
    return Fault(
        id=id,
        rows=(),
        source="mathematics",
        breaks=breaks,
        seam="honest",
        applies=applies,
        inject=patched(inject) if isinstance(inject, tuple) else inject,
        passes=passes,
    )


def _blocks(traits: Traits) -> bool:
    return traits.any_block(lambda one: isinstance(one.qkv, FusedQKV) and one.qkv.layout is QKVLayout.BLOCKED)


HONEST: tuple[Fault, ...] = (
    _variant("summation order", "Products are summed in two halves.", (Projection, "__call__", _in_two_halves)),
    _variant(
        "strided weights",
        "Weights have other strides.",
        (Projection, "__call__", _strided_weight),
        passes=("backward memory",),  # the copies are kept, which beside few tokens are most of it
    ),
    _variant("residual first", "The residual meets the bias before the product.", (Projection, "plus", _sum_first)),
    _variant(
        "eager attention",
        "Attention is written out.",
        patched(attending(lambda honest: _by_hand)),
        passes=("backward memory",),  # all scores are kept
    ),
    _variant("scaled queries", "The scale is applied to queries.", patched(attending(_scaled_queries))),
    _variant("heads reversed", "Heads are computed in another order.", patched(attending(_heads_reversed))),
    _variant(
        "keys reversed",
        "Keys are summed in another order.",
        patched(attending(_keys_reversed)),
        passes=("backward memory",),  # each layer keeps a mask of its own
    ),
    _variant("row by row", "Each row of the batch is attended to alone.", patched(attending(_row_by_row))),
    _variant("math kernel", "torch's plain kernel computes attention.", _math_kernel),
    _variant("norm by hand", "Norms are written out.", (fused_transformer, "normalise", _norm_by_hand)),
    _variant("activation by hand", "Activations are written out.", (fused_linear, "activate", _activation_by_hand)),
    _variant("unpacked", "Queries, keys and values are three products.", (fused_attention, "can_pack", _unpacked)),
    _variant(
        "fused as split",
        "One QKV projection is computed as three.",
        patched((FusedAttention, "__init__", _fused_as_split), (FusedAttention, "joined", _views_watched)),
        _blocks,
        # It keeps its views of the weight: a view that is kept passes no gradients on, nor does it always see what somebody
        # else writes to memory that the weight was given later.
        passes=("gradients", "shared memory"),
    ),
    _variant(
        "garbage in padding",
        "Positions that nobody attends to hold garbage.",
        (FusedTransformerLayer, "__call__", _garbage_in_padding),
        lambda traits: traits.varies("padding"),
    ),
    _variant(
        "float masks",
        "Bool masks become masks to add.",
        (fused_attention, "resolve", _other_mask_kind),
        lambda traits: layered(traits) and not traits.any_block(lambda one: one.even_if_blind),
    ),
    # A captured graph owns its inputs and outputs: memory that the model had not, by contract.
    _variant("graphs", "Calls are captured and replayed.", emulated, captures, passes=("storages",)),
    _variant("another thread", "One more thread computes.", _two_threads),
)
"""Rewrites in which nothing is to be found."""
