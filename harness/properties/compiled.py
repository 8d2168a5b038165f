"""torch.compile of a replaced model, traced and run without code generation: the same numbers, and never stale ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..covering import chosen_by
from ..trial import Trial, original_side
from .base import Property, layered, same_outputs, same_tensor
from .cache import OUTPUT, in_chunks, with_cache
from .cache_edits import preallocated
from .equality import Recorded, main_output, recorded, valid_positions
from .gradients import gradients_of_layer, largest_of, same_gradients
from .weights import CHANGES, change_weights

SPARE = 3
"""Places of a preallocated cache that are never filled."""
WAYS: tuple[dict[str, Any], ...] = (
    {"backend": "eager", "dynamic": False},
    {"backend": "eager", "dynamic": True},
    {"backend": "aot_eager", "dynamic": False},
)
"""The last backend makes of a call a function of its tensors, and leaves out what has no effect that is declared; where sizes are
left open it takes twice the time."""


def _compiled(trial: Trial) -> None:
    """One layer is compiled and called. Each call in another mode, of other sizes or with other weights is compiled anew, which
    takes most of the time, so an example asks one half: gradients and a cache that grows, or a preallocated cache and weights
    that are changed in every way."""
    path, call = sorted(recorded(trial).items())[0]
    mine, its = trial.original.get_submodule(path), trial.replaced.model.get_submodule(path)
    what = f"{path}, compiled"
    torch.compiler.reset()
    try:
        its.compile(**chosen_by(trial.example.seed, WAYS))
        _same(trial, mine, its, call, what)
        if trial.example.seed % 2:
            if trial.case.static_cache and trial.case.caches(trial.example):
                _preallocated(trial, what)
            for how in CHANGES:
                change_weights(mine, its, how)
                _same(trial, mine, its, call, f"{what}, its weights then {how}")
        else:
            _backward(trial, mine, its, call, what)
            if trial.case.caches(trial.example):
                _growing(trial, what)
    finally:
        torch.compiler.reset()


def _growing(trial: Trial, what: str) -> None:
    """A prompt and a step. Calls of what is compiled are not counted, so that no fused path is asked for."""
    inputs = with_cache(trial.inputs)
    lengths = _prompt_and_step(inputs)
    with original_side("with a cache"):
        expected = in_chunks(trial.original, inputs.kwargs, lengths)[0]
    actual = in_chunks(trial.replaced.model, inputs.kwargs, lengths)[0]
    same_outputs(trial, {OUTPUT: expected}, {OUTPUT: actual}, inputs.valid, f"{what}, calls of {lengths} tokens")


def _preallocated(trial: Trial, what: str) -> None:
    """A prompt and a step on a preallocated cache. Without a mask of the caller's transformers makes one, which hides what is not
    filled yet, and nothing else."""
    inputs = with_cache(trial.inputs)
    lengths, kwargs = _prompt_and_step(inputs), {**inputs.kwargs, "attention_mask": None}
    size = sum(lengths) + SPARE
    with original_side("with a static cache"):
        expected = in_chunks(trial.original, kwargs, lengths, preallocated(trial.original, size))[0]
    model = trial.replaced.model
    actual = in_chunks(model, kwargs, lengths, preallocated(model, size))[0]
    what = f"{what}, calls of {lengths} tokens on a static cache"
    same_outputs(trial, {OUTPUT: expected}, {OUTPUT: actual}, None, what)


def _prompt_and_step(inputs: Inputs) -> list[int]:
    """Numbers of tokens."""
    tokens = inputs.kwargs["input_ids"].shape[1]
    return [tokens - 1, 1] if tokens > 1 else [1]


def _backward(trial: Trial, mine: nn.Module, compiled: Any, call: Recorded, what: str) -> None:
    """Gradients of the layer's parameters and of what it is given."""
    with original_side("with gradients"):
        expected = gradients_of_layer(mine, call)
    same_gradients(trial, expected, gradients_of_layer(compiled, call), largest_of(expected), what)


def _same(trial: Trial, mine: nn.Module, compiled: Any, call: Recorded, what: str) -> None:
    with original_side():
        expected: Tensor = main_output(mine(*call.args, **call.kwargs))
    same_tensor(trial, expected, main_output(compiled(*call.args, **call.kwargs)), valid_positions(trial, expected), what)


COMPILED = Property(
    name="torch.compile",
    statement="A compiled replacement computes the same, with the same gradients, on a cache that grows and on a preallocated "
    "one, also when its weights are changed in place, by new memory, assigned anew or in modules put in the old ones' places.",
    check=_compiled,
    applies=layered,
    exact=False,
    share=0.004,
    least=2,
)
