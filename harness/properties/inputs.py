"""Other inputs for the same model: rows of a batch, other tokens, more columns, another shape.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Case, Example, Inputs, Value
from ..nested import mapped
from ..trial import Trial

TOKENS = ("input_ids", "hidden_states")
"""Arguments that hold one entry a token, batch first: (B, T) ids or (B, T, D) states."""


def rows(inputs: Inputs, index: Tensor, batch: int) -> Inputs:
    """The inputs of these rows of the batch, in this order. Tensors that do not have B in front serve every row."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[index] if tensor.dim() and tensor.shape[0] == batch else tensor

    valid = None if inputs.valid is None else inputs.valid[index]
    return Inputs(kwargs=mapped(inputs.kwargs, pick), valid=valid)


def some_rows(trial: Trial, batch: int) -> Tensor:
    """Rows of a batch in an order that the example's seed decides: permuted, single, or with repeats."""
    generator = torch.Generator().manual_seed(trial.example.seed + 11)
    style = trial.example.seed % 3
    if style == 0:
        return torch.randperm(batch, generator=generator)
    return torch.randint(batch, (1 if style == 1 else batch + 1,), generator=generator)


def tokens_of(inputs: Inputs) -> str | None:
    """Name of the argument that holds the tokens, or None where there is none."""
    return next((name for name in TOKENS if name in inputs.kwargs), None)


def has_tokens(case: Case) -> Callable[[Example], bool]:
    """Whether the model of an example is given tokens (and not pixels)."""
    return lambda example: tokens_of(case.inputs(example)) is not None


def other_tokens(trial: Trial, inputs: Inputs, where: Tensor) -> Inputs:
    """The same call with other tokens at the positions of ``where`` (B, T) bool."""
    name = tokens_of(inputs)
    assert name is not None
    others = trial.inputs_of(Example(trial.example.values, trial.example.seed + 7919)).kwargs[name]
    tokens = inputs.kwargs[name]
    mixed = torch.where(where if tokens.dim() == 2 else where[..., None], others, tokens)
    return Inputs(kwargs={**inputs.kwargs, name: mixed}, valid=inputs.valid)


def padded(inputs: Inputs, columns: int, *, left: bool) -> tuple[Inputs, slice]:
    """The same call with so many masked columns more, and where the old ones are. The mask must be (B, T)."""
    ids, mask = inputs.kwargs["input_ids"], inputs.kwargs["attention_mask"]
    garbage = ids[:, :1].expand(-1, columns)
    nothing = mask.new_zeros(mask.shape[0], columns)
    kwargs = {
        **inputs.kwargs,
        "input_ids": torch.cat((garbage, ids) if left else (ids, garbage), dim=1),
        "attention_mask": torch.cat((nothing, mask) if left else (mask, nothing), dim=1),
    }
    if "position_ids" in kwargs:
        told = inputs.kwargs["position_ids"]
        somewhere = told.new_zeros(told.shape[0], columns)
        kwargs["position_ids"] = torch.cat((somewhere, told) if left else (told, somewhere), dim=1)
    real = slice(columns, None) if left else slice(0, ids.shape[1])
    return Inputs(kwargs=kwargs), real


def other_inputs(trial: Trial, salt: int, **values: Value) -> Inputs:
    """Other inputs for the trial's model: another seed and other input axes, those of ``values`` fixed."""
    chosen = random.Random(trial.example.seed * 31 + salt)
    axes = {axis.name: axis for axis in trial.case.axes if axis.name in trial.case.input_axes}
    drawn = {name: chosen.choice(axis.values) for name, axis in axes.items()}
    fixed = {name: value for name, value in values.items() if name in axes}
    return trial.inputs_of(Example({**trial.example.values, **drawn, **fixed}, trial.example.seed + salt))
