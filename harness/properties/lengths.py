"""Each length by itself, and a step far behind the first token. Kernels are chosen by length, and tables end at one.

Shapes: B batch, T tokens, H heads of keys and values, E elements of a head.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..exact import unwatched
from ..trial import NothingToAsk, Trial, fused_path
from .base import Property, cached, same_outputs
from .cache import OUTPUT, arguments, cached_trial, decoded_alike, in_chunks, with_cache
from .cache_edits import preallocated
from .inputs import has_tokens
from .sizes import has_lengths, that_runs

EACH = 136
"""Tokens: up to a block of 128, and half a block of 16 more, each length is called for. An example takes a second or two."""
FAR = 8_200
"""Tokens: more than the 4,096 or 8,192 that tables and workspaces are made for. But for the last they are not computed: the
cache holds any keys and values for them."""
SPARE = 600
"""Places of a preallocated cache behind those: more than a part of one that a kernel takes at once."""
STEPS = [150, 2, 1]
"""Tokens of the calls behind those: more than a block, and few."""
GRID = 64
"""Steps to one, of the numbers that stand for keys and values: a float16 below 16 holds them."""
FAR_BEHIND = f"{sum(STEPS)} tokens behind {FAR - sum(STEPS):,} in a cache"
FAR_STATIC = f"{FAR_BEHIND} of more places"


def _each_length(trial: Trial) -> None:
    trial = trial.suited(has_tokens(trial.case))
    trial = that_runs((trial.vary(tokens=EACH, layers=1),), trial)
    model, most = trial.replaced.model, trial.example["tokens"]
    for tokens in range(1, most + 1):
        example = trial.example.with_value("tokens", tokens)
        inputs = trial.inputs_of(example)
        expected = trial.run_original(inputs)
        same_outputs(trial, expected, trial.run_replaced(model, trial.inputs_of(example)), inputs.valid, f"tokens={tokens}")
    if trial.case.caches(trial.example):
        decoded_alike(trial, with_cache(trial.inputs), [1] * most, f"tokens={most}, one by one")


def far_trial(trial: Trial) -> Trial:
    """The trial with a layer of a model that keeps a cache, two rows, and as many tokens as are far."""
    trial = cached_trial(trial).vary(tokens=FAR, batch=2, layers=1)
    if trial.example.values.get("mask") != "none":
        trial = trial.vary(mask="2d")  # one of four dimensions would be left out, and has hundreds of megabytes
    return trial


def far_inputs(trial: Trial) -> Inputs:
    """The call of a ``far_trial``; of its tokens the last alone are computed, and none of these is padding."""
    kwargs = arguments(trial.inputs)
    if kwargs.get("attention_mask") is not None:
        kwargs["attention_mask"][:, -sum(STEPS) :] = 1
    return Inputs(kwargs=kwargs)


def behind(model: nn.Module, inputs: Inputs, seed: int, *, places: int = 0) -> dict[str, Tensor]:
    """Outputs (B, n, D) for the last tokens of ``inputs``, behind any keys and values for all before them, in a cache that grows
    or is preallocated, of so many ``places``."""
    past = inputs.kwargs["input_ids"].shape[1] - sum(STEPS)
    cache = in_chunks(model, inputs.kwargs, [1], preallocated(model, places) if places else None)[1]
    _fill(cache, past - 1, torch.Generator().manual_seed(seed))
    return {OUTPUT: in_chunks(model, inputs.kwargs, STEPS, cache, start=past)[0]}


def _far(trial: Trial) -> None:
    trial = far_trial(trial)
    preallocated_first = trial.case.static_cache and trial.example.seed & 1
    if not (preallocated_first and _asked_behind(trial, FAR_STATIC, FAR + SPARE)) and not _asked_behind(trial, FAR_BEHIND):
        raise NothingToAsk(FAR_BEHIND)


def _asked_behind(trial: Trial, what: str, places: int = 0) -> bool:
    """Whether the original gives anything ``behind`` many tokens; then the replacement gives the same."""
    run = functools.partial(behind, inputs=far_inputs(trial), seed=trial.example.seed, places=places)
    expected = trial.asked(what, lambda: run(trial.original))
    if expected is None:
        return False
    with fused_path(trial.replaced.model):
        actual = run(trial.replaced.model)
    same_outputs(trial, expected, actual, None, what)
    return True


def _fill(cache: Any, tokens: int, generator: torch.Generator) -> None:
    """Put any keys and values (B, H, T, E) into each layer of ``cache``, behind what it holds: the same numbers in float16 and
    float64, and values of which weights that do not add up to one make others. Older transformers want to be told the places."""
    own = getattr(cache, "self_attention_cache", cache)
    for place, layer in enumerate(own.layers):
        held = layer.keys
        shape = (2, *held.shape[:2], tokens, held.shape[-1])
        with unwatched():
            numbers = torch.randn(shape, dtype=torch.float32, generator=generator)
        keys, values = (numbers * GRID).round().to(held) / GRID
        own.update(keys, values + 1, place, {"cache_position": torch.arange(1, tokens + 1, device=held.device)})


EACH_LENGTH = Property(
    name="each length",
    statement=f"Each number of tokens from 1 to {EACH} gives what the original gives, in one call and decoded one by one.",
    check=_each_length,
    applies=has_lengths,
    share=0.004,
    least=1,
)
FAR_PAST = Property(
    name="far past",
    statement=f"Tokens behind a cache of some {FAR:,}, which grows or is preallocated, give what the original gives.",
    check=_far,
    applies=cached,
    share=0.03,
)
