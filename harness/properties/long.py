"""Long sequences: attention kernels work in blocks of 16 to 128 tokens, and the usual examples fill none of them."""

from __future__ import annotations

import random

from torch import Tensor, nn

from ..case import Inputs
from ..trial import OriginalFailed, Trial, fused_path, original_side
from .base import Property, layered, same_outputs
from .cache import OUTPUT, in_chunks, with_cache
from .inputs import has_tokens

LENGTHS = (33, 64, 95, 129, 190, 257)
"""Tokens: whole blocks of every usual size, and blocks with a tail, of one token and of many."""
STEPS = 2


def long_trial(trial: Trial) -> Trial:
    """The trial with one of ``LENGTHS``, or the largest below it that its original has positions for. Which one, the values
    of its axes decide: the same configuration with other numbers is as long."""
    trial = trial.suited(has_tokens(trial.case))
    most = random.Random(str(sorted(trial.example.values.items()))).choice(LENGTHS)
    for tokens in reversed([one for one in LENGTHS if one <= most]):
        longer = trial.vary(tokens=tokens)
        try:
            _ = longer.expected_outputs
        except OriginalFailed:
            continue
        return longer
    return trial


def decoded(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs for all tokens of ``inputs``, a call with a cache, the last of them one by one."""
    tokens = inputs.kwargs["input_ids"].shape[1]
    lengths = [tokens - STEPS, *[1] * STEPS] if tokens > STEPS else [tokens]
    return {OUTPUT: in_chunks(model, inputs.kwargs, lengths)[0]}


def _long(trial: Trial) -> None:
    trial = long_trial(trial)
    model, inputs, tokens = trial.replaced.model, trial.fresh_inputs(), trial.example["tokens"]
    same_outputs(trial, trial.expected_outputs, trial.run_replaced(model, inputs), inputs.valid, f"{tokens} tokens")
    if not trial.case.caches(trial.example):
        return
    inputs = with_cache(inputs)
    with original_side("with a cache"):
        expected = decoded(trial.original, inputs)
    with fused_path(model):
        actual = decoded(model, inputs)
    same_outputs(trial, expected, actual, inputs.valid, f"{tokens} tokens, the last of them decoded")


LONG = Property(
    name="long sequences",
    statement="Sequences of up to 257 tokens give what the original gives, in one call and decoded.",
    check=_long,
    applies=layered,
    share=0.03,
)
