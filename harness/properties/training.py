"""Training: gradients through the replacement, and steps of an optimiser between its calls."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from ..numerics import EXACT_TOLERANCE, gap
from ..trial import Disagreement, Trial, Vacuous, original_side
from .base import Property, same_outputs


def _gradients(trial: Trial) -> None:
    """Gradients in eval mode, where the fused path runs, with some parameters frozen before or after replacing."""
    chosen = random.Random(trial.example.seed)
    model, original = trial.copy(), trial.original
    frozen = [name for name, _ in original.named_parameters() if chosen.random() < chosen.choice((0.0, 0.5, 0.9))]
    early = chosen.random() < 0.5
    if early:
        _freeze(model, frozen)
    trial.replace(model)
    if not early:
        trial.run_replaced(model, trial.fresh_inputs())
    _freeze(model, frozen)
    _freeze(original, frozen)
    with original_side("with gradients"):
        mine = _backward(trial, original, fused=False)
    its = _backward(trial, model, fused=True)
    if not any(gradient is not None for gradient in mine.values()):
        return _inference_matches(trial, model)
    when = "before" if early else "after"
    _same_gradients(trial, mine, its, f"with {len(frozen)} parameters frozen {when} the replacement")


def _freeze(model: nn.Module, names: list[str]) -> None:
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def _backward(trial: Trial, model: nn.Module, *, fused: bool) -> dict[str, Tensor | None]:
    """Gradients by parameter name of a weighted sum of the outputs that count."""
    model.zero_grad()
    inputs = trial.fresh_inputs()
    with torch.enable_grad():
        outputs = trial.run_replaced(model, inputs) if fused else trial.case.run(model, inputs)
        output = next(iter(outputs.values()))
        seen = output if inputs.valid is None else output[inputs.valid]
        weights = torch.linspace(-1.0, 2.0, seen.numel(), dtype=seen.dtype).reshape(seen.shape)
        total = (seen * weights).sum()
        if total.requires_grad:
            total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _inference_matches(trial: Trial, model: nn.Module) -> None:
    actual = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, trial.expected_outputs, actual, trial.inputs.valid, "with every parameter frozen")


def _same_gradients(
    trial: Trial, mine: dict[str, Tensor | None], its: dict[str, Tensor | None], what: str
) -> None:
    """Raise unless the same parameters have gradients, equal on the scale of the largest of all."""
    largest = max((float(one.abs().max()) for one in mine.values() if one is not None), default=0.0)
    if largest == 0.0:
        raise Vacuous("all gradients of the original are zero")
    for name, expected in mine.items():
        actual = its[name]
        if (expected is None) != (actual is None):
            raise Disagreement(f"{what}: {name} has {'no' if actual is None else 'a'} gradient, unlike the original's")
        if expected is None:
            continue
        difference = gap(expected / largest, None if actual is None else actual / largest)
        error = difference.error * float((expected / largest).abs().max())
        if difference.problem is not None or error > EXACT_TOLERANCE:
            raise Disagreement(f"{what}: gradient of {name}: {difference.problem or f'error {error:.1e}'}", error=error)
        trial.evidence.note(error)


def _training(trial: Trial) -> None:
    """A training step with dropout between two calls in eval mode, the same on both sides."""
    model = trial.replaced.model
    trial.run_replaced(model, trial.fresh_inputs())
    with original_side("in training mode"):
        _step(trial, trial.original)
    _step(trial, model)
    trial.original.eval()
    model.eval()
    expected = trial.run_original(trial.inputs)
    actual = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, "after a training step")


def _step(trial: Trial, model: nn.Module) -> None:
    """One step down a bounded loss, from one state of the random generator."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.manual_seed(trial.example.seed)
        output = next(iter(trial.case.run(model, trial.fresh_inputs()).values()))
        torch.tanh(output).mean().backward()
    optimiser.step()
    optimiser.zero_grad()


GRADIENTS = Property(
    name="gradients",
    statement="Gradients through the replacement are the original's, whichever parameters are frozen, before or after it.",
    check=_gradients,
    share=0.05,
)

TRAINING = Property(
    name="training step",
    statement="After a training step, dropout included, the replaced model computes what the original computes after its own.",
    check=_training,
    share=0.05,
)
