"""Same function: each layer on its own input, and the whole model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..numerics import EXACT_TOLERANCE, gap
from ..trial import Disagreement, Trial, Vacuous
from .base import Property, same_outputs


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
            self.model.get_submodule(path).register_forward_hook(self._hook(path), with_kwargs=True)
            for path in self.paths
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.calls[path] = Recorded(args, kwargs, output)

        return hook


def _layer_equality(trial: Trial) -> None:
    paths = tuple(one.path for one in trial.replaced.replaced)
    with Recorder(trial.original, paths) as recorder:
        trial.run_original(trial.inputs)
    if not recorder.calls:
        raise Vacuous("the original called none of the layers that were replaced")
    for path, call in recorder.calls.items():
        layer = trial.replaced.model.get_submodule(path)
        _same_layer_output(trial, path, call, layer(*call.args, **call.kwargs))


def _same_layer_output(trial: Trial, path: str, call: Recorded, actual: Any) -> None:
    expected = call.output
    if type(actual) is not type(expected):
        raise Disagreement(f"{path} returns a {type(actual).__name__}, the original a {type(expected).__name__}")
    if isinstance(expected, tuple):
        if len(expected) != len(actual):
            raise Disagreement(f"{path} returns {len(actual)} values, the original {len(expected)}")
        expected, actual = expected[0], actual[0]
    difference = gap(expected, actual, _valid(trial, expected))
    if not difference.within(EXACT_TOLERANCE):
        message = difference.problem or f"relative error {difference.error:.1e} (tolerance {EXACT_TOLERANCE:.0e})"
        raise Disagreement(f"{path or 'model'} on the original's input: {message}", error=difference.error)
    trial.evidence.note(difference.error)


def _valid(trial: Trial, output: Tensor) -> Tensor | None:
    """The positions that count, where the layer keeps batch and tokens in front."""
    valid = trial.inputs.valid
    if valid is None or output.shape[:2] == valid.shape:
        return valid
    return valid.t() if output.shape[:2] == valid.t().shape else None


def _model_equality(trial: Trial) -> None:
    expected = trial.expected_outputs
    actual = trial.run_replaced(trial.replaced.model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, "whole model")


LAYER_EQUALITY = Property(
    name="layer equality",
    statement="Each replaced layer, given the input that the original layer was given, returns the same output in the "
    "same form.",
    check=_layer_equality,
    applies=lambda case: case.layered,
    share=0.5,
)

MODEL_EQUALITY = Property(
    name="model equality",
    statement="The model with replaced layers returns the same outputs at every position that counts.",
    check=_model_equality,
)
