"""Same function: each layer on its own input, and the whole model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..nested import tensors_in
from ..trial import Disagreement, Trial, Vacuous, fused_path, sequence_first
from .base import Property, layered, same_form, same_outputs, same_tensor


@dataclass
class Recorded:
    """One call of one layer: what it was given and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass
class Recorder:
    """Records the calls of the modules at ``paths`` while the model runs."""

    model: nn.Module
    paths: tuple[str, ...]
    calls: dict[str, Recorded] = field(default_factory=dict)

    def __enter__(self) -> Recorder:
        self._hooks = [
            self.model.get_submodule(path).register_forward_hook(self._hook(path), with_kwargs=True) for path in self.paths
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.calls[path] = Recorded(args, kwargs, output)

        return hook


def recorded(trial: Trial) -> dict[str, Recorded]:
    """The original's calls of the layers that were replaced, by path. Raises ``Vacuous`` where it called none of them."""
    with Recorder(trial.original, tuple(one.path for one in trial.replaced.replaced)) as recorder:
        trial.run_original(trial.inputs)
    if not recorder.calls:
        raise Vacuous("the original called none of the layers that were replaced")
    return recorder.calls


def layers_alike(trial: Trial, where: str = "") -> None:
    """Each layer, given what the original's is given, returns the same. A model's last norm hides the scale of its layers.
    ``where`` begins each message."""
    for path, call in recorded(trial).items():
        layer = trial.replaced.model.get_submodule(path)
        given = list(tensors_in((call.args, call.kwargs)))
        before = [tensor.clone() for tensor in given]
        with fused_path(layer):
            actual = layer(*call.args, **call.kwargs)
        if any(not torch.equal(mine, now) for mine, now in zip(before, given, strict=True)):
            raise Disagreement(f"{where}{path or 'model'} writes to what it is given")
        _same_layer_output(trial, f"{where}{path or 'model'}", call, actual)


def _same_layer_output(trial: Trial, what: str, call: Recorded, actual: Any) -> None:
    expected = call.output
    same_form(expected, actual, what)
    expected, actual = main_output(expected), main_output(actual)
    same_tensor(trial, expected, actual, valid_positions(trial, expected), f"{what} on the original's input")


def main_output(returned: Any) -> Any:
    """What a layer computes, out of what it returns."""
    return returned[0] if isinstance(returned, tuple) else returned


def valid_positions(trial: Trial, output: Tensor) -> Tensor | None:
    """The positions that count, where the layer keeps batch and tokens in front."""
    valid = trial.inputs.valid
    if valid is None:
        return None
    if sequence_first(trial.replaced.model):
        valid = valid.t()
    return valid if output.shape[:2] == valid.shape else None


def _model_equality(trial: Trial) -> None:
    expected = trial.expected_outputs
    actual = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, "whole model")


LAYER_EQUALITY = Property(
    name="layer equality",
    statement="Each replaced layer, given the input that the original layer was given, returns the same output in the "
    "same form and leaves the input as it was.",
    check=layers_alike,
    applies=layered,
    share=0.25,
)

MODEL_EQUALITY = Property(
    name="model equality",
    statement="The model with replaced layers returns the same outputs at every position that counts.",
    check=_model_equality,
    share=2.0,  # a regression run then asks it of a whole covering array, which no other property does
)
