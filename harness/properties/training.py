"""Steps of an optimiser between the replacement's calls."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor, nn

from policies.plans import Plan, PlanUnavailable

from ..trial import Disagreement, Trial, fused_states, original_side
from .base import Property, same_outputs
from .lifecycle import same_state

RATE = 0.1
"""Of learning: a step that a float32 result shows."""
SWITCHES = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "enable_gradient_checkpointing")
"""What models of transformers, since 5.24 and before, and of diffusers have by which a backward pass computes again what it
needs."""


def _training(trial: Trial, *, checkpoints: bool = False) -> None:
    """A training step with dropout, or with checkpointing, between two calls in eval mode, the same on both sides; and a call in
    training mode without gradients, as who asks a model for many answers makes."""
    model = trial.replaced.model
    trial.run_replaced(model, trial.fresh_inputs())
    if for_inference(model):
        _refused(trial, model)
        return
    if (
        checkpoints
        and can_checkpoint(trial.original)
        and trial.asked("checkpointing", lambda: checkpointing(trial.original)) is not None
    ):
        checkpointing(model)
    with original_side("in training mode"):
        _step(trial, trial.original)
    _step(trial, model)
    if trial.case.layered:  # parts of a whole model drop other elements where an image lies otherwise in memory
        mine, its = (_without_gradients(trial, side) for side in (trial.original, model))
        same_outputs(trial, mine, its, trial.inputs.valid, "in training mode without gradients")
    trial.original.eval()
    model.eval()
    expected = trial.run_original(trial.inputs)
    actual = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, "after a training step")


def can_checkpoint(model: nn.Module) -> bool:
    return any(hasattr(model, switch) for switch in SWITCHES)


def checkpointing(model: nn.Module) -> nn.Module:
    """``model`` in training mode, with checkpointing."""
    getattr(model.train(), next(switch for switch in SWITCHES if hasattr(model, switch)))()
    return model


def for_inference(model: nn.Module) -> bool:
    """Whether the plan of ``model`` is for inference alone."""
    return any(state.execution is Plan.PACKED for state in fused_states(model))


def _refused(trial: Trial, model: nn.Module) -> None:
    """A plan that is for inference says so in one line when it is trained, and the model is what it was."""
    try:
        _step(trial, model)
    except PlanUnavailable as refusal:
        if len(str(refusal).splitlines()) != 1:
            raise Disagreement(f"training is refused in more than one line: {refusal}") from refusal
        trial.evidence.refusals.append(str(refusal))
    else:
        raise Disagreement("a plan for inference was trained without a word")
    expected = _without_gradients(trial, trial.original)
    actual = _without_gradients(trial, model)
    same_outputs(trial, expected, actual, trial.inputs.valid, "in training mode without gradients")
    trial.original.eval()
    model.eval()
    same_state(trial.original, model, "after training was refused", strides=False)
    actual = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, trial.expected_outputs, actual, trial.inputs.valid, "after training was refused")


def _without_gradients(trial: Trial, model: nn.Module) -> dict[str, Tensor]:
    """Outputs in training mode, dropout included, from one state of the random generator."""
    model.train()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(trial.example.seed)
        return trial.case.run(model, trial.fresh_inputs())


def _step(trial: Trial, model: nn.Module) -> None:
    """One step down a bounded loss, from one state of the random generator."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.manual_seed(trial.example.seed)
        output = next(iter(trial.case.run(model, trial.fresh_inputs()).values()))
        torch.tanh(output).mean().backward()
    optimiser.step()
    optimiser.zero_grad()


TRAINING = Property(
    name="training step",
    statement="After a training step, dropout included, the replaced model computes what the trained original does; a plan "
    "that is for inference refuses the step in one line.",
    check=_training,
    share=0.05,
)
CHECKPOINTED = dataclasses.replace(TRAINING, check=functools.partial(_training, checkpoints=True))
"""In lower dtypes: what is computed again on the way back is out of exact mode."""
