"""Memory that processes share: another one writes to it, and nobody here is told.

Writing by address stands in for the other process: torch sees no operation, and counts no version.
"""

from __future__ import annotations

import ctypes
import random

import torch
from torch import Tensor, nn

from ..trial import Disagreement, Trial
from .base import Property, same_outputs

MOST = 48
"""Parameters that are shared at a time. Each takes a file descriptor."""


def _shared_memory(trial: Trial) -> None:
    original, model = trial.copy(), trial.copy()
    parameters = dict(model.named_parameters())
    names = random.Random(trial.example.seed).sample(sorted(parameters), min(MOST, len(parameters)))
    places = {name: parameters[name].share_memory_().data_ptr() for name in names}
    del parameters
    trial.replace(model)
    _compare(trial, original, model, "with memory that processes share")
    _stays(model, places)
    for name in names:
        own = original.get_parameter(name)
        with torch.no_grad():
            own.mul_(1.25)
        _write(places[name], own)
    _compare(trial, original, model, "after another process wrote to the memory")
    _stays(model, places)


def _stays(model: nn.Module, places: dict[str, int]) -> None:
    for name, place in places.items():
        parameter = model.get_parameter(name)
        if parameter.data_ptr() != place or not parameter.is_shared():
            raise Disagreement(f"{name} was moved out of the memory that processes share")


def _write(address: int, values: Tensor) -> None:
    """Put ``values`` where ``address`` points to, in the strides that they have."""
    last = sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    room = (ctypes.c_byte * ((last + 1) * values.element_size())).from_address(address)
    torch.frombuffer(room, dtype=values.dtype).as_strided(values.shape, values.stride()).copy_(values.detach())


def _compare(trial: Trial, original: nn.Module, model: nn.Module, what: str) -> None:
    expected = trial.case.run(original, trial.fresh_inputs())
    same_outputs(trial, expected, trial.run_replaced(model, trial.fresh_inputs()), trial.inputs.valid, what)


SHARED_MEMORY = Property(
    name="shared memory",
    statement="Parameters that lie in memory shared between processes stay there, and what another process writes to them "
    "is what computes.",
    check=_shared_memory,
    share=0.05,
)
