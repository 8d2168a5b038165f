"""torch.compile of a replaced model, traced and run without code generation: the same numbers, and never stale ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..covering import chosen_by
from ..trial import Trial, original_side
from .base import Property, layered, same_tensor
from .equality import Recorded, main_output, recorded, valid_positions
from .weights import CHANGES, change_weights

BACKENDS = ("eager", "aot_eager")
"""The second makes of a call a function of its tensors, and leaves out what has no effect that is declared."""


def _compiled(trial: Trial) -> None:
    """One layer is compiled, and called before and after its weights are changed in every way."""
    path, call = sorted(recorded(trial).items())[0]
    mine, its = trial.original.get_submodule(path), trial.replaced.model.get_submodule(path)
    torch.compiler.reset()
    try:
        backend = chosen_by(trial.example.seed, BACKENDS)
        compiled = torch.compile(its, backend=backend, dynamic=trial.example.seed % 2 == 1)
        _same(trial, mine, compiled, call, f"{path}, compiled")
        for how in CHANGES:
            change_weights(mine, its, how)
            _same(trial, mine, compiled, call, f"{path}, compiled, its weights then {how}")
    finally:
        torch.compiler.reset()


def _same(trial: Trial, mine: nn.Module, compiled: Any, call: Recorded, what: str) -> None:
    with original_side():
        expected: Tensor = main_output(mine(*call.args, **call.kwargs))
    same_tensor(trial, expected, main_output(compiled(*call.args, **call.kwargs)), valid_positions(trial, expected), what)


COMPILED = Property(
    name="torch.compile",
    statement="A compiled replacement computes the same, also when its weights are changed in place, by new memory, "
    "assigned anew or in modules put in the old ones' places.",
    check=_compiled,
    applies=layered,
    exact=False,
    share=0.004,
    least=2,
)
