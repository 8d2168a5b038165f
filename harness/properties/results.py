"""What a caller does with a layer's result: learns from it, writes into it, gives it another shape."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..trial import Trial, original_side, replacement_side
from .base import Property, layered, same_tensor
from .equality import Recorded, main_output, recorded, valid_positions
from .gradients import gradients_of_layer, largest_of, same_gradients

Deed = Callable[[Tensor], Tensor]


def _results(trial: Trial) -> None:
    """Without padding, which is nobody's: what a replacement makes of it has gradients as well."""
    trial = trial.vary(padding="none")
    calls = sorted(recorded(trial).items())
    path, call = calls[trial.example.seed % len(calls)]
    mine, its = trial.original.get_submodule(path), trial.replaced.model.get_submodule(path)
    for words, deed in DEEDS.items():
        _alike(trial, mine, its, call, f"{path}, {words}", deed)
    what = f"{path}, its result written to before the backward pass"
    expected = trial.asked(what, lambda: gradients_of_layer(mine, call, _written))
    if expected is not None:
        with replacement_side(what):
            actual = gradients_of_layer(its, call, _written)
        same_gradients(trial, expected, actual, largest_of(expected), what)
    _weight_changed(trial, mine, its, call, path)


def _alike(trial: Trial, mine: nn.Module, its: nn.Module, call: Recorded, what: str, deed: Deed) -> None:
    """What is done with a result that is made without gradients."""

    def done(layer: nn.Module) -> Tensor:
        return deed(main_output(layer(*call.args, **call.kwargs)))

    expected = trial.asked(what, lambda: done(mine))
    if expected is not None:
        with replacement_side(what):
            actual = done(its)
        same_tensor(trial, expected, actual, valid_positions(trial, expected), what)


def _learned_from(result: Tensor) -> Tensor:
    """The gradient of what the result is multiplied by, as a head on frozen features has it."""
    with torch.enable_grad():
        head = torch.ones_like(result, requires_grad=True)
        return torch.autograd.grad((result * head).sum(), head)[0]


def _viewed(result: Tensor) -> Tensor:
    """All tokens one behind the other, which takes a result that lies so in memory."""
    return result.view(-1, result.shape[-1]).view(result.shape)


def _written(result: Tensor) -> None:
    result[..., -1] = 0.0


def _weight_changed(trial: Trial, mine: nn.Module, its: nn.Module, call: Recorded, path: str) -> None:
    """Before the backward pass, as by an optimiser's step. Where an original raises, a replacement may have kept what the weight
    was."""
    matrices = [name for name, parameter in mine.named_parameters() if parameter.dim() > 1]
    name = random.Random(trial.example.seed).choice(matrices)
    if not _raises_when_changed(mine, call, name):
        return
    with original_side("with gradients"):
        expected = gradients_of_layer(mine, call)
    try:
        actual = gradients_of_layer(its, call, lambda _: _double(its, name))
    except RuntimeError:
        return
    what = f"{path}, its {name} changed before the backward pass, where the original raises"
    same_gradients(trial, expected, actual, largest_of(expected), what)


def _raises_when_changed(layer: nn.Module, call: Recorded, name: str) -> bool:
    """Whether gradients are refused. The weight is what it was, afterwards."""
    try:
        gradients_of_layer(layer, call, lambda _: _double(layer, name))
    except RuntimeError:
        return True
    finally:
        with torch.no_grad():
            layer.get_parameter(name).mul_(0.5)
    return False


def _double(layer: nn.Module, name: str) -> None:
    with torch.no_grad():
        layer.get_parameter(name).mul_(2.0)


DEEDS: dict[str, Deed] = {
    "a head learns from its result": _learned_from,
    "its result seen as a list of tokens": _viewed,
}
RESULTS = Property(
    name="results",
    statement="What can be done with a layer's result can be done with its replacement's: learning from it what was computed "
    "without gradients, seeing it as a list of tokens, writing into it before the backward pass; a weight that is changed before "
    "that is refused, or is what it was.",
    check=_results,
    applies=layered,
    exact=False,
    share=0.02,
)
