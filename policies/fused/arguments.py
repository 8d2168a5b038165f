"""Reading a call in the original's own terms into what the fused layer takes.

Shapes: B batch, T tokens, D hidden size, R rotated elements of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..anatomy import Attention, Causality
from ..calls import CACHE_NAMES, CallConvention, RotarySource
from ..releases import at_least
from .attention import AttentionCall
from .transformer import EncoderStates, FusedTransformerLayer
from .transforms import compiling


@dataclass(slots=True, kw_only=True, eq=False)  # frozen would cost a microsecond a call
class Arguments:
    """One call, understood; ``unknown`` says what in it only the original's own forward can honour."""

    hidden: Tensor
    call: AttentionCall
    encoder: EncoderStates | None = None
    context: Any = None
    unknown: str | None = None


_ROTARY = {
    RotarySource.EMBEDDINGS: "position_embeddings",
    RotarySource.HALVES: "position_embeddings",
    RotarySource.TABLE: "position_ids",
    RotarySource.ANGLES: "rotary_pos_emb",
}
"""The argument that brings cosines and sines, or what they are made of."""


_CACHE_IS_TOLD = at_least("transformers", "5.24") or not at_least("transformers", "5.4")
"""Whether layers hand to their cache what they were given besides, which transformers' own caches do not read. Before 5.4 some
of them handed on sines and cosines."""
_TOLD_AS = frozenset({"kwargs", "cache_kwargs"})


def read_arguments(
    convention: CallConvention,
    core: FusedTransformerLayer,
    parameters: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Arguments:
    """Understand the ``args`` and ``kwargs`` of a layer that ``core`` computes, by its policy's call ``convention``.

    A step of decoding is a millisecond, and nothing here is in a cache when it begins: what a call does not bring is not
    looked at by a function of its own.
    """
    given = {name: value for name, value in kwargs.items() if value is not None}
    for name, value in zip(parameters, args):
        if value is not None:
            given[name] = value
    hidden = given.pop("hidden_states")
    mask = given.pop("attention_mask", None)
    cache = unknown = problem = encoder = cos = sin = None
    for name in CACHE_NAMES:
        if name in given:
            cache = given.pop(name)
            if _CACHE_IS_TOLD and _reads_more(cache):
                problem = "a cache that may read what else the layer was given"
            break
    positions = given.get("cache_position")
    if convention.rotary is not None:
        try:
            cos, sin = _cos_sin(convention.rotary, core.anatomy.attention, given, hidden)
        except _NotGivenError as missing:
            unknown = str(missing)
    if convention.true_means_masked and mask is not None:
        mask, problem = (~mask, problem) if getattr(mask, "dtype", None) is torch.bool else (mask, _kind(mask))
    elif not _added(mask):
        problem = problem or not_a_mask(core, mask)
    call = AttentionCall(
        mask=mask,
        cache=getattr(cache, "self_attention_cache", cache),
        cos=cos,
        sin=sin,
        alibi=_of_heads(given.pop("alibi"), hidden) if "alibi" in given else None,
        causal=_causal(convention, core, given.pop("is_causal")) if "is_causal" in given else None,
        extra=None if positions is None else {"cache_position": positions},
    )
    encoder_mask = given.pop("encoder_attention_mask", None)
    if "encoder_hidden_states" in given:
        encoder = EncoderStates(states=given.pop("encoder_hidden_states"), call=AttentionCall(mask=encoder_mask, cache=cache))
        problem = _no_encoder(core, cache) or problem
        if not _added(encoder_mask):
            problem = problem or not_a_mask(core, encoder_mask)
        # BERT's cross-attention is handed the word, too, GPT-2's is not.
        if call.causal or (call.causal is False and _crosses_causally(core)):
            problem = problem or "a word on causality beside encoder states"
    if given.pop("output_attentions", False):
        problem = "attention weights asked for"
    context = given.pop("context", None)
    for name in given:
        if name not in convention.ignored:
            problem = f"argument {name}"
            break
    if convention.sequence_first:
        if not compiling() and torch.is_inference_mode_enabled():
            hidden = hidden.data  # what megatron-core makes there of an ordinary tensor, a "viewless" one, cannot have views
        hidden = hidden.transpose(0, 1)
    return Arguments(hidden=hidden, call=call, encoder=encoder, context=context, unknown=unknown or problem)


class _NotGivenError(Exception):
    """A call without something the layer needs, or with another thing: the original says so better."""


def _cos_sin(
    source: RotarySource, attention: Attention, given: dict[str, Any], hidden: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Cosines and sines as (B or 1, 1, T, R)."""
    rotary = attention.rotary
    if rotary is None:
        if source is RotarySource.ANGLES:
            given.pop("rotary_pos_emb", None)  # every layer is handed them, and those without rotary take no notice
        return None, None
    name = _ROTARY[source]
    value = given.pop(name, None)
    if value is None:
        if rotary.size is None:
            return None, None
        raise _NotGivenError(f"no {name}")
    if source is RotarySource.EMBEDDINGS:
        cos, sin = value
    elif source is RotarySource.HALVES:
        sin, cos = (half.repeat_interleave(2, dim=-1) for half in value)
    elif source is RotarySource.TABLE:
        cos, sin = _from_table(attention.module.get_buffer("embed_positions"), value, hidden)
    else:
        if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[2] != 1:
            raise _NotGivenError(f"{name} that is not one (T, B or 1, 1, R) tensor for queries and keys")
        cos, sin = _from_angles(value, hidden)
    size = cos.shape[-1]
    if (rotary.size is not None and size != rotary.size) or size > attention.head_size:
        raise _NotGivenError(f"rotary positions of {size} elements")
    return cos.unsqueeze(1), sin.unsqueeze(1)


def _from_table(table: Tensor, positions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a (positions, R) table of R/2 sines then R/2 cosines, each repeated for both elements of its pair."""
    rows = table.to(hidden.device)[positions].to(hidden.dtype)
    sin, cos = rows.repeat_interleave(2, dim=-1).chunk(2, dim=-1)
    return cos, sin


def _from_angles(angles: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Angles (T, B or 1, 1, R) in radians."""
    angles = angles[:, :, 0, :].transpose(0, 1)
    return torch.cos(angles).to(hidden.dtype), torch.sin(angles).to(hidden.dtype)


def _of_heads(alibi: Tensor, hidden: Tensor) -> Tensor:
    """(B * H, 1, S) as (B, H, 1, S)."""
    return alibi.unflatten(0, (hidden.shape[0], -1))


def _causal(convention: CallConvention, core: FusedTransformerLayer, causal: Any) -> bool | None:
    """transformers' sdpa lets a call overrule the layer's causality, where the layer hands the word on; its eager attention
    reads only the mask."""
    if "is_causal" in convention.ignored:
        return None
    return bool(causal) if _by_sdpa(core) else None


def _crosses_causally(core: FusedTransformerLayer) -> bool:
    return core.cross is not None and core.cross.attention.causality is not Causality.NEVER


def _by_sdpa(core: FusedTransformerLayer) -> bool:
    config = getattr(core.anatomy.attention.module, "config", None)
    return getattr(config, "_attn_implementation", None) == "sdpa"


def _added(mask: Any) -> bool:
    """Whether ``mask`` is none, or of numbers that are added to scores."""
    return mask is None or (isinstance(mask, Tensor) and mask.is_floating_point())


def not_a_mask(core: FusedTransformerLayer, mask: Any) -> str | None:
    """Why ``mask``, which holds no numbers to add, is none here: only sdpa reads truth values as keys that are seen. Eager
    attention adds 0 and 1, and torch has no integer masks."""
    if getattr(mask, "dtype", None) is torch.bool and _by_sdpa(core):
        return None
    return _kind(mask)


def _kind(mask: Any) -> str:
    return f"a mask of dtype {mask.dtype}" if isinstance(mask, Tensor) else f"a mask of class {type(mask).__name__}"


def _reads_more(cache: Any) -> bool:
    """Whether ``cache`` is updated by somebody else's function, and that has a name for what it is told."""
    update = getattr(getattr(cache, "self_attention_cache", cache), "update", None)
    if update is None or (getattr(update, "__module__", None) or "").startswith("transformers."):
        return False
    code = getattr(getattr(update, "__func__", update), "__code__", None)
    return code is None or not _TOLD_AS.isdisjoint(code.co_varnames)


def _no_encoder(core: FusedTransformerLayer, cache: Any) -> str | None:
    """Why encoder states cannot be attended to."""
    if core.cross is None:
        return "encoder states for a layer without cross-attention"
    if cache is not None and not hasattr(cache, "is_updated"):
        return "cross-attention with a cache that has no place for it"
    return None
