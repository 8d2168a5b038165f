"""Memory of parameters that others hold too: another process, or a flat vector of them all, as distributed optimisers keep it.

The other holder writes, and nobody here is told: no parameter counts a version.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..trial import Disagreement, Trial
from .base import Property, same_models
from .weights import FACTOR

MOST = 48
"""Parameters that are shared between processes at a time. Each takes a file descriptor."""

Write = Callable[[], None]


def _shared_memory(trial: Trial) -> None:
    by_processes = (_by_processes,) if trial.case.device == "cpu" else ()  # memory of a GPU is not written to past torch
    for hold in (*by_processes, _by_a_vector, _by_a_vector_later):
        hold(trial, trial.copy(), trial.copy())


def _by_processes(trial: Trial, original: nn.Module, model: nn.Module) -> None:
    """Memory that processes share, before the model is replaced."""
    parameters = dict(model.named_parameters())
    names = random.Random(trial.example.seed).sample(sorted(parameters), min(MOST, len(parameters)))
    for name in names:
        parameters[name].share_memory_()
    del parameters
    places = _places(model, names)
    trial.replace(model)
    same_models(trial, original, model, "with memory that processes share")
    _stays(model, places)

    def write() -> None:
        with torch.no_grad():
            for name in names:
                own = original.get_parameter(name)
                own.mul_(FACTOR)
                _written_to(places[name], own)

    _goes_on(trial, original, model, places, write)


def _by_a_vector(trial: Trial, original: nn.Module, model: nn.Module) -> None:
    """A vector of all parameters, before the model is replaced."""
    vectors = _vector(original), _vector(model)
    places = _places(model)
    trial.replace(model)
    same_models(trial, original, model, "with parameters that are parts of one vector")
    _stays(model, places)
    _goes_on(trial, original, model, places, lambda: _scale(*vectors))


def _by_a_vector_later(trial: Trial, original: nn.Module, model: nn.Module) -> None:
    """A vector of all parameters, after the model was replaced and called."""
    trial.replace(model)
    trial.run_replaced(model, trial.fresh_inputs())
    vectors = _vector(original), _vector(model)
    places = _places(model)
    same_models(trial, original, model, "with parameters that became parts of one vector")
    _goes_on(trial, original, model, places, lambda: _scale(*vectors))


def _goes_on(trial: Trial, original: nn.Module, model: nn.Module, places: dict[str, int], write: Write) -> None:
    write()
    same_models(trial, original, model, "after another holder of the memory wrote to it")
    _stays(model, places)


def _places(model: nn.Module, names: list[str] | None = None) -> dict[str, int]:
    return {name: one.data_ptr() for name, one in model.named_parameters() if names is None or name in names}


def _stays(model: nn.Module, places: dict[str, int]) -> None:
    for name, place in places.items():
        if model.get_parameter(name).data_ptr() != place:
            raise Disagreement(f"{name} was moved out of memory that others hold too")


def _vector(model: nn.Module) -> Tensor:
    parameters = list(model.parameters())
    vector = torch.cat([one.detach().flatten() for one in parameters])
    for parameter, part in zip(parameters, vector.split([one.numel() for one in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return vector


def _scale(*vectors: Tensor) -> None:
    for one in vectors:
        one.mul_(FACTOR)


def _written_to(address: int, values: Tensor) -> None:
    """Put ``values`` where ``address`` points to, in the strides that they have, unseen by torch."""
    last = sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    room = (ctypes.c_byte * ((last + 1) * values.element_size())).from_address(address)
    torch.frombuffer(room, dtype=values.dtype).as_strided(values.shape, values.stride()).copy_(values.detach())


SHARED_MEMORY = Property(
    name="shared memory",
    statement="Parameters whose memory others hold too, another process or a flat vector, stay there, and what is written to it "
    "is what computes.",
    check=_shared_memory,
    share=0.04,
)
