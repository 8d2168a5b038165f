"""Captured graphs: calls that are replayed give what the calls themselves would, whatever came before.

Models on a CPU are captured by the emulator, which follows the contract of CUDA graphs.
"""

from __future__ import annotations

from torch import nn

from policies.fused.capture import BY_DEVICE, captured_by

from ..case import Case
from ..trial import Trial, graphs_of
from .base import Property, same_outputs
from .calls import INTERLEAVED, ORDER, REPEAT, SHAPES
from .copies import DEEPCOPY
from .gradients import GRADIENTS
from .hooks import HOOKS
from .memory import MANY_CALLS
from .settings import SETTINGS
from .threads import THREADS
from .weights import change_weights

IN_TURN = ((REPEAT, SETTINGS), (ORDER, HOOKS), (SHAPES, THREADS), (INTERLEAVED, GRADIENTS), (DEEPCOPY, MANY_CALLS))
"""What is asked of every fifth example each."""


def whole_models(case: Case) -> bool:
    """Whole models are what replacements capture; calls of single layers are captured by whoever calls the model."""
    return not case.layered


def captures(model: nn.Module) -> bool:
    """Whether a replaced ``model`` captures its calls on a device that can."""
    return getattr(getattr(model, "fused", None), "backend", None) is not None


def _captured(trial: Trial) -> None:
    with captured_by(BY_DEVICE[trial.case.device]):
        for prop in IN_TURN[trial.example.seed % len(IN_TURN)]:
            prop.check(trial)
    model = trial.replaced.model
    trial.evidence.replays += sum(one.replays for one in graphs_of(model))
    for how in ("changed in place", "assigned anew"):  # a copied part of a replaced model brings the whole model along
        change_weights(trial.original, model, how)
        expected = trial.run_original(trial.fresh_inputs())
        actual = trial.run_replaced(model, trial.fresh_inputs())
        same_outputs(trial, expected, actual, trial.inputs.valid, f"after its weights were {how}")


CAPTURED = Property(
    name="captured graphs",
    statement="Calls replayed from captured graphs give what they should in any order and shape, with the weights and the "
    "settings of now.",
    check=_captured,
    applies=whole_models,
    share=0.03,
    least=len(IN_TURN),
    shown_by=("replays", "no call was replayed from a graph"),
)
