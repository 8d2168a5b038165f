"""Same function with a key/value cache, whatever way a sequence is cut into calls."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..covering import chosen_by
from ..trial import Trial, fused_path, original_side, replacement_side
from .base import Property, cached, relation_holds, same_outputs
from .inputs import other_inputs
from .masks import RANDOM

PER_TOKEN = ("input_ids", "position_ids")
OUTPUT = "last_hidden_state"
MOST_STEPS = 12
"""Tokens decoded one by one; all of a short sequence."""
FEW = 4
BRANCHES = (1, FEW, 26)
"""Tokens of a tree: one, a few, or as many as those have that draft several heads at once."""
WEIGHS = "that weighs keys, for each head"
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    RANDOM: lambda seen: seen,
    "of one row for all": lambda seen: seen[:1],
    "of one query for all": lambda seen: seen[:, :, -1:],
    WEIGHS: lambda seen: seen,
}
"""Of a tree's mask (B, 1, n, S) of truth."""


def cached_trial(trial: Trial) -> Trial:
    """The trial, on a model that keeps a cache."""
    return trial.suited(trial.case.caches)


def arguments(inputs: Inputs) -> dict[str, Any]:
    """A call with a cache. Masks of four dimensions are cut for one call's length, so only those of two stay."""
    kwargs = {**inputs.kwargs, "use_cache": True}
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        kwargs["attention_mask"] = None
        kwargs.pop("position_ids", None)
    return kwargs


def valid_in(inputs: Inputs, kwargs: dict[str, Any]) -> Tensor | None:
    return inputs.valid if kwargs.get("attention_mask") is not None else None


def with_cache(inputs: Inputs) -> Inputs:
    """The call of ``inputs`` with a cache, and the positions that count then."""
    kwargs = arguments(inputs)
    return Inputs(kwargs=kwargs, valid=valid_in(inputs, kwargs))


def cuts(tokens: int, seed: int) -> list[int]:
    """Lengths of the calls a sequence is cut into: a prompt then a few single tokens, or as many as there are, or chunks."""
    style = seed % 4
    if style < 2:
        steps = min(2 if style == 0 else MOST_STEPS, tokens - 1)
        return [tokens - steps, *[1] * steps]
    if style == 2:
        return [part for part in (tokens // 2, tokens - tokens // 2) if part]
    chosen = random.Random(seed)
    parts: list[int] = []
    while sum(parts) < tokens:
        parts.append(chosen.randint(1, tokens - sum(parts)))
    return parts


def own_cache(model: nn.Module, kind: type | None = None) -> Any:
    """An empty cache of the caller's own, of a class of its own too, which knows nothing of the model: its layers come with the
    first call."""
    from transformers import DynamicCache

    return with_a_cross_cache(model, (kind or DynamicCache)())


def with_a_cross_cache(model: nn.Module, cache: Any) -> Any:
    """``cache`` as a ``model`` that attends to an encoder takes it, or itself."""
    from transformers import DynamicCache, EncoderDecoderCache

    config = cast(Any, model.config)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if getattr(config, "add_cross_attention", False) else cache


def in_chunks(
    model: nn.Module, kwargs: dict[str, Any], lengths: list[int], cache: Any = None, *, start: int = 0
) -> tuple[Tensor, Any]:
    """All positions' outputs, computed call by call, and the cache that results. The first ``start`` are in ``cache`` already."""
    outputs = []
    for length in lengths:
        output = model(**piece(kwargs, start, start + length), past_key_values=cache)
        cache = output.past_key_values
        outputs.append(output.last_hidden_state)
        start += length
    return torch.cat(outputs, dim=1), cache


def decoded_alike(trial: Trial, inputs: Inputs, lengths: list[int], what: str) -> None:
    """Raise unless calls of ``lengths`` tokens, on one cache, give what they give of the original. ``inputs`` have a cache."""
    model = trial.replaced.model
    with original_side("with a cache"):
        expected = in_chunks(trial.original, inputs.kwargs, lengths)[0]
    with fused_path(model):
        actual = in_chunks(model, inputs.kwargs, lengths)[0]
    same_outputs(trial, {OUTPUT: expected}, {OUTPUT: actual}, inputs.valid, what)


def piece(kwargs: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    """The call of tokens ``start`` to ``end``, with the mask of everything up to there."""
    call = {name: value[:, start:end] if name in PER_TOKEN else value for name, value in kwargs.items()}
    mask = kwargs.get("attention_mask")
    if mask is not None:
        call["attention_mask"] = mask[:, :end]
    return call


def extended(kwargs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """The call that brings ``ids`` (B, n) after all tokens of ``kwargs``, whose own are in the cache."""
    call = {name: value for name, value in kwargs.items() if name not in PER_TOKEN}
    mask = kwargs.get("attention_mask")
    if mask is not None:
        call["attention_mask"] = torch.cat((mask, mask.new_ones(ids.shape)), dim=1)
    return call | {"input_ids": ids}


def _cache(trial: Trial) -> None:
    trial = cached_trial(trial)
    kwargs = arguments(trial.inputs)
    valid = valid_in(trial.inputs, kwargs)
    lengths = cuts(kwargs["input_ids"].shape[1], trial.example.seed)
    alone = {**kwargs, "use_cache": False}
    given = own_cache if trial.example.seed & 1 else lambda model: None
    with original_side("with a cache"):
        expected, expected_cache = in_chunks(trial.original, kwargs, lengths, given(trial.original))
        whole = trial.original(**alone).last_hidden_state
    with fused_path(trial.replaced.model):
        actual, actual_cache = in_chunks(trial.replaced.model, kwargs, lengths, given(trial.replaced.model))
    what = f"calls of {lengths} tokens"
    same_outputs(trial, {OUTPUT: expected}, {OUTPUT: actual}, valid, what)
    if relation_holds(whole, expected, valid):
        # The original agrees with itself however it is called (dynamic rotary scaling, for one, does not).
        once = trial.replaced.model(**alone).last_hidden_state
        same_outputs(trial, {OUTPUT: once}, {OUTPUT: actual}, valid, f"one call against {what}")
    _as_a_tree(trial, kwargs, expected_cache)
    _continue_elsewhere(trial, kwargs, expected_cache, actual_cache)


def _as_a_tree(trial: Trial, kwargs: dict[str, Any], cache: Any) -> None:
    """Several tokens at once behind the original's cache, of which none is bound to see all that came before it, as drafts of
    what may be said next are verified together; or one. What the cache holds of padding, which an eager layer does not hide
    where it is given truth values, is each side's own."""
    tokens = BRANCHES[trial.example.seed // 8 % len(BRANCHES)]
    form, call = tree(trial, kwargs, tokens)
    what = f"{tokens} tokens at once behind a cache, with a mask {form}"
    asked_of_both(trial, what, lambda model: _behind(model, call, cache))


def asked_of_both(trial: Trial, what: str, ask: Callable[[nn.Module], Tensor], valid: Tensor | None = None) -> None:
    """Raise unless the replaced model gives what its original gives, if that gives anything. The replacement may leave it to the
    original's own code."""
    expected = trial.asked(what, lambda: ask(trial.original))
    if expected is not None:
        with replacement_side(what):
            actual = ask(trial.replaced.model)
        same_outputs(trial, {OUTPUT: expected}, {OUTPUT: actual}, valid, what)


def _behind(model: Any, call: dict[str, Any], cache: Any) -> Tensor:
    """The output of a call behind what ``cache`` holds, which stays as it is."""
    output: Tensor = model(**call, past_key_values=copy.deepcopy(cache)).last_hidden_state
    return output


def tree(trial: Trial, kwargs: dict[str, Any], tokens: int, *, places: int = 0) -> tuple[str, dict[str, Any]]:
    """The form of a mask, and a call with one of ``tokens`` behind those of ``kwargs``: a token sees what counts of the past,
    itself and some of the new ones before it, and, for models that can be told, its position (B, n) is behind as many of them.
    The mask is for so many ``places``, or for those that are filled."""
    seed, past = trial.example.seed, kwargs["input_ids"]
    form = WEIGHS if tokens == 1 else chosen_by(seed, tuple(FORMS))  # one token is masked otherwise in any step
    ids = other_inputs(trial, 1, **{**trial.example.values, "tokens": tokens}).kwargs["input_ids"]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, (len(ids), 1, tokens, tokens), generator=generator).to(ids.device).bool()
    branches = drawn.tril() | torch.eye(tokens, dtype=torch.bool, device=ids.device)
    call = {**extended(kwargs, ids), "attention_mask": _tree_mask(trial, kwargs, branches, form, places)}
    if "position_ids" in inspect.signature(trial.original.forward).parameters:
        call["position_ids"] = past.shape[1] - 1 + branches[:, 0].sum(-1)
    return form, call


def _tree_mask(trial: Trial, kwargs: dict[str, Any], branches: Tensor, form: str, places: int) -> Tensor:
    """A mask of truth or to be added, of the past of ``kwargs`` and ``branches`` (B, 1, n, n) of truth."""
    ids, mask, seed = kwargs["input_ids"], kwargs.get("attention_mask"), trial.example.seed
    past = (torch.ones_like(ids) if mask is None else mask).bool()[:, None, None].expand(-1, -1, branches.shape[2], -1)
    seen = FORMS[form](torch.cat((past, branches), dim=-1))
    seen = nn.functional.pad(seen, (0, max(0, places - seen.shape[-1])))
    added = torch.zeros(seen.shape, dtype=trial.dtype, device=ids.device)
    if form == WEIGHS:
        heads = getattr(trial.original.config, "num_attention_heads", 1)
        shape = (len(seen), heads, *seen.shape[2:])
        added = torch.randn(shape, dtype=trial.dtype, generator=torch.Generator().manual_seed(seed)).to(ids.device)
    elif seed & 2:
        return seen
    return added.masked_fill(~seen, torch.finfo(trial.dtype).min)


def _continue_elsewhere(trial: Trial, kwargs: dict[str, Any], expected_cache: Any, actual_cache: Any) -> None:
    """Each side's cache serves the other for one more token, of which the caller may want no cache back."""
    more = extended(kwargs, kwargs["input_ids"][:, :1]) | {"use_cache": bool(trial.example.seed & 4)}
    for_replaced = copy.deepcopy(expected_cache)
    with original_side("with its own cache"):
        expected = {OUTPUT: trial.original(**more, past_key_values=expected_cache).last_hidden_state}
    actual = {OUTPUT: trial.original(**more, past_key_values=actual_cache).last_hidden_state}
    same_outputs(trial, expected, actual, None, "the original, continuing from the replaced model's cache")
    what = "continuing from the original's cache"
    with replacement_side(what):
        actual = {OUTPUT: trial.replaced.model(**more, past_key_values=for_replaced).last_hidden_state}
    same_outputs(trial, expected, actual, None, f"the replaced model, {what}")
    if trial.example.seed & 8:
        _of_other_lengths(trial, more, expected_cache)


def _of_other_lengths(trial: Trial, more: dict[str, Any], cache: Any) -> None:
    """One token more, without a mask, behind a cache of which the first layer has lost some tokens, as where each layer has a
    budget of its own."""
    first = getattr(cache, "self_attention_cache", cache).layers[0]
    lost = first.keys.shape[-2] // 2
    first.keys, first.values = first.keys[..., lost:, :], first.values[..., lost:, :]
    call = {**more, "attention_mask": None}
    what = "continuing from a cache whose layers hold different numbers of tokens"
    asked_of_both(trial, what, lambda model: _behind(model, call, cache))


CACHE = Property(
    name="cache",
    statement="Prefill followed by steps, steps alone and chunks give what the original gives and what one call gives, "
    "and the cache that either side leaves serves a token or a tree of them with a mask of its own, in any form and for each "
    "head, and, with use_cache or without, the other side, after one layer has lost some of it, too.",
    check=_cache,
    applies=cached,
    share=0.2,
)
