"""What a call with gradients keeps for its backward pass: how many bytes, and for how long."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..trial import Disagreement, Trial, original_side, storages
from .base import Property, living
from .sizes import that_runs
from .training import can_checkpoint, checkpointing, for_inference

TOKENS = 300
"""Enough that scores of all queries and keys would be the largest of what is kept."""
MORE = 1.5
"""What a replacement may keep, by what the original does: another way to compute the same keeps a tensor or two more."""


class _Held:
    """One tensor that a backward pass needs, without its own graph: that would be a circle, which nobody lets go of."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


@dataclass
class _Kept:
    """What one call kept: bytes by storage, and who holds each tensor now."""

    model: nn.Module
    sizes: dict[int, int] = field(default_factory=dict)
    holders: list[weakref.ref[_Held]] = field(default_factory=list)

    def pack(self, tensor: Tensor) -> _Held:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        held = _Held(tensor)
        self.holders.append(weakref.ref(held))
        return held

    @property
    def bytes(self) -> int:
        """Parameters and buffers left out, also those that have got their memory back in the call, having been packed."""
        own = storages(self.model)
        return sum(size for address, size in self.sizes.items() if address not in own)

    @property
    def alive(self) -> int:
        """How many are held yet."""
        if any(one() is not None for one in self.holders):
            gc.collect()
        return sum(one() is not None for one in self.holders)


def _kept_by(trial: Trial, model: nn.Module) -> _Kept:
    """What a call of ``model`` keeps, whose outputs nobody holds any more."""
    kept, inputs = _Kept(model), trial.fresh_inputs()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        living(trial.case.run(model, inputs), inputs.valid)
    return kept


def _no_more(trial: Trial, how: str) -> None:
    with original_side("with gradients"):
        most = _kept_by(trial, trial.original).bytes
    kept = _kept_by(trial, trial.replaced.model)
    if kept.bytes > MORE * most:
        raise Disagreement(f"{how}{kept.bytes} bytes are kept for a backward pass where the original keeps {most}")
    if kept.alive:
        raise Disagreement(
            f"{how}{kept.alive} of {len(kept.holders)} tensors that a backward pass needs stay alive when nobody holds the output"
        )


def _backward_memory(trial: Trial) -> None:
    if trial.case.layered:
        trial = that_runs((trial.vary(tokens=TOKENS, batch=1),), trial)
    _no_more(trial, "")
    if for_inference(trial.replaced.model) or not can_checkpoint(trial.original):
        return
    if trial.asked("checkpointing", lambda: checkpointing(trial.original)) is not None:
        checkpointing(trial.replaced.model)
        _no_more(trial, "in training with checkpointing, ")


BACKWARD_MEMORY = Property(
    name="backward memory",
    statement=f"With gradients, and in training with checkpointing, a call keeps no more than {MORE} times the bytes for its "
    "backward pass that the original's keeps, and none when nobody holds its output.",
    check=_backward_memory,
    exact=False,
    share=0.02,
)
