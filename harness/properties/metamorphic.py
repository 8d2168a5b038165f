"""Metamorphic relations: how outputs have to change, or not, when inputs do.

A relation is asked of the replacement where the original satisfies it itself: dynamic rotary scaling, for one, makes
every position depend on the length of the sequence. Whether or not it holds, the replacement has to agree with the
original on the changed inputs, so no example goes without a comparison.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case
from ..trial import Disagreement, Trial
from .base import Property, living, relation_holds, same_outputs, same_tensor
from .inputs import has_tokens, other_tokens, padded, rows, some_rows


def _rows(trial: Trial) -> None:
    trial = trial.at_least("batch", 2)
    valid, whole = trial.inputs.valid, living(trial.expected_outputs, trial.inputs.valid)
    batch = next(iter(whole.values())).shape[0]
    index = some_rows(trial, batch)
    chosen = rows(trial.inputs, index, batch)
    what = f"rows {index.tolist()} of the batch"
    expected = trial.run_original(chosen)
    actual = trial.run_replaced(trial.replaced.model, rows(trial.fresh_inputs(), index, batch))
    same_outputs(trial, expected, actual, chosen.valid, what)
    together = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    same_outputs(trial, whole, together, valid, "the whole batch")
    for name in whole:
        if relation_holds(whole[name][index], expected[name], chosen.valid):
            same_tensor(trial, together[name][index], actual[name], chosen.valid, f"{what}, alone against together")
    _no_rows(trial, batch)


def _no_rows(trial: Trial, batch: int) -> None:
    """A batch that nothing is left of gives outputs of the original's shapes, where an original takes one."""
    nothing = torch.empty(0, dtype=torch.long)
    expected = trial.asked("a batch without rows", lambda: trial.case.run(trial.original, rows(trial.inputs, nothing, batch)))
    if expected is None:
        return
    actual = trial.case.run(trial.replaced.model, rows(trial.fresh_inputs(), nothing, batch))
    shapes = [{name: (output.shape, output.dtype) for name, output in outputs.items()} for outputs in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise Disagreement(f"a batch without rows: expected {shapes[0]}, got {shapes[1]}")


def _padding(trial: Trial) -> None:
    seed = trial.example.seed
    trial = trial.suited(has_tokens(trial.case)).at_least("tokens", 3)
    if trial.example["padding"] == "none":
        trial = trial.vary(padding=("left", "right", "interior")[seed % 3])
    if trial.example["mask"] == "none":
        trial = trial.vary(mask="2d")
    if trial.example["mask"] == "2d" and seed % 2:
        _more_padding(trial, columns=1 + seed % 3, left=bool(seed & 4))
    else:
        _garbage_under_the_mask(trial)


def _garbage_under_the_mask(trial: Trial) -> None:
    inputs = trial.inputs
    assert inputs.valid is not None
    garbage = other_tokens(trial, inputs, ~inputs.valid)
    expected, actual = trial.run_original(garbage), trial.run_replaced(trial.replaced.model, garbage)
    same_outputs(trial, expected, actual, inputs.valid, "other tokens under the mask")
    clean = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    for name, output in trial.expected_outputs.items():
        if relation_holds(output, expected[name], inputs.valid):
            same_tensor(trial, clean[name], actual[name], inputs.valid, "tokens under the mask show through")


def _more_padding(trial: Trial, *, columns: int, left: bool) -> None:
    longer, real = padded(trial.inputs, columns, left=left)
    what = f"{columns} masked columns more on the {'left' if left else 'right'}"
    expected = {name: output[:, real] for name, output in trial.run_original(longer).items()}
    actual = {name: output[:, real] for name, output in trial.run_replaced(trial.replaced.model, longer).items()}
    valid = trial.inputs.valid
    same_outputs(trial, expected, actual, valid, what)
    short = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    for name, output in trial.expected_outputs.items():
        if relation_holds(output, expected[name], valid):
            same_tensor(trial, short[name], actual[name], valid, f"{what}, against none")


def _causality(trial: Trial) -> None:
    trial = trial.suited(has_tokens(trial.case)).at_least("tokens", 2)
    if trial.inputs.valid is not None and not _early(trial.inputs.valid).any():
        trial = trial.vary(padding="none")
    inputs, whole = trial.inputs, trial.expected_outputs
    batch, tokens = next(iter(whole.values())).shape[:2]
    valid = next(iter(whole.values())).new_ones(batch, tokens, dtype=torch.bool) if inputs.valid is None else inputs.valid
    first = int(_early(valid).any(0).nonzero()[0])
    last = first + trial.example.seed % (tokens - 1 - first)
    later = (torch.arange(tokens, device=valid.device) > last).expand(batch, -1)
    changed = other_tokens(trial, inputs, later)
    expected, actual = trial.run_original(changed), trial.run_replaced(trial.replaced.model, changed)
    same_outputs(trial, expected, actual, inputs.valid, f"other tokens after position {last}")
    before = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    same_outputs(trial, whole, before, inputs.valid, "the tokens as they were")
    earlier = valid & ~later
    for name in whole:
        if relation_holds(whole[name], expected[name], earlier):
            same_tensor(trial, before[name], actual[name], earlier, f"tokens after {last} show through before them")


def _early(valid: Tensor) -> Tensor:
    """Positions that count and have another behind them."""
    return valid[:, :-1]


def _pads(case: Case) -> bool:
    """Whether examples can be padded at all."""
    return {"padding", "mask"} <= {axis.name for axis in case.axes}


def _can_have_tokens(case: Case) -> bool:
    return has_tokens(case)(case.simplest)


ROWS = Property(
    name="batch rows",
    statement="The rows of a batch do not see each other: permuted, repeated or alone, each gets the same output; and "
    "a batch may have none.",
    check=_rows,
    share=0.06,
)

PADDING = Property(
    name="padding",
    statement="What stands under the mask changes nothing that counts, neither other tokens nor more columns, wherever "
    "that is true of the original.",
    check=_padding,
    applies=_pads,
    share=0.06,
)

CAUSALITY = Property(
    name="causality",
    statement="Later tokens change earlier outputs exactly where they do so in the original.",
    check=_causality,
    applies=_can_have_tokens,
    share=0.06,
)
