"""Same function with a key/value cache, whatever way a sequence is cut into calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..numerics import EXACT_TOLERANCE, gap
from ..trial import OriginalFailed, Trial
from .base import Property, same_outputs

PER_TOKEN = ("input_ids", "position_ids")


def _cuts(tokens: int, seed: int) -> list[int]:
    """Lengths of the calls a sequence is cut into: a prompt then single tokens, single tokens only, or chunks."""
    style = seed % 3
    if style == 0:
        prompt = max(1, tokens - 2)
        return [prompt, *[1] * (tokens - prompt)]
    if style == 1:
        return [1] * tokens
    return [part for part in (tokens // 2, tokens - tokens // 2) if part]


def _in_chunks(trial: Trial, model: nn.Module, kwargs: dict[str, Any], cuts: list[int]) -> tuple[Tensor, Any]:
    """All positions' outputs, computed call by call, and the cache that results."""
    cache, start, outputs = None, 0, []
    mask = kwargs.get("attention_mask")
    for length in cuts:
        end = start + length
        call = {name: value[:, start:end] if name in PER_TOKEN else value for name, value in kwargs.items()}
        if mask is not None:
            call["attention_mask"] = mask[:, :end]
        output = model(**call, past_key_values=cache)
        cache = output.past_key_values
        outputs.append(output.last_hidden_state)
        start = end
    return torch.cat(outputs, dim=1), cache


def _cache(trial: Trial) -> None:
    if not trial.case.caches(trial.example):
        trial = Trial(trial.case, _cached_example(trial), trial.replacer)
    inputs = trial.inputs
    kwargs = {**inputs.kwargs, "use_cache": True}
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dim() != 2:
        kwargs["attention_mask"] = None
        kwargs.pop("position_ids", None)
    cuts = _cuts(inputs.kwargs["input_ids"].shape[1], trial.example.seed)
    try:
        expected, expected_cache = _in_chunks(trial, trial.original, kwargs, cuts)
    except Exception as problem:
        raise OriginalFailed(f"the original raised {type(problem).__name__} with a cache: {problem}") from problem
    actual, actual_cache = _in_chunks(trial, trial.replaced.model, kwargs, cuts)
    valid = inputs.valid if kwargs.get("attention_mask") is not None else None
    what = f"calls of {cuts} tokens"
    same_outputs(trial, {"last_hidden_state": expected}, {"last_hidden_state": actual}, valid, what)
    whole = trial.original(**{**kwargs, "use_cache": False}).last_hidden_state
    if gap(whole, expected, valid).within(EXACT_TOLERANCE):
        # The original agrees with itself however it is called (dynamic rotary scaling, for one, does not).
        once = trial.replaced.model(**{**kwargs, "use_cache": False}).last_hidden_state
        same_outputs(trial, {"last_hidden_state": once}, {"last_hidden_state": actual}, valid, f"one call against {what}")
    _continue_elsewhere(trial, kwargs, expected_cache, actual_cache)


def _continue_elsewhere(trial: Trial, kwargs: dict[str, Any], expected_cache: Any, actual_cache: Any) -> None:
    """The cache that the replaced model filled serves the original for one more token."""
    mask = kwargs.get("attention_mask")
    more = {
        name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask", "position_ids")
    }
    more["input_ids"] = kwargs["input_ids"][:, :1]
    if mask is not None:
        more["attention_mask"] = torch.cat((mask, mask.new_ones(mask.shape[0], 1)), dim=1)
    expected = trial.original(**more, past_key_values=expected_cache).last_hidden_state
    actual = trial.original(**more, past_key_values=actual_cache).last_hidden_state
    same_outputs(
        trial,
        {"last_hidden_state": expected},
        {"last_hidden_state": actual},
        None,
        "the original, continuing from the replaced model's cache",
    )


def _cached_example(trial: Trial) -> Any:
    """``trial``'s example, changed in the one axis that decides whether there is a cache."""
    for axis in trial.case.axes:
        for value in axis.values:
            example = trial.example.with_value(axis.name, value)
            if trial.case.caches(example):
                return example
    raise AssertionError(f"{trial.case.name} says that it caches, but no single axis turns it on")


CACHE = Property(
    name="cache",
    statement="Prefill followed by steps, steps alone and chunks give what the original gives and what one call gives, "
    "and the cache they leave serves the original.",
    check=_cache,
    applies=lambda case: case.cached,
    share=0.5,
)
