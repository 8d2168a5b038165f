"""load_replaced: a model with replaced layers, from a checkpoint, without the original ever being in memory.

What ``replace_module`` would make of the loaded model, bit for bit, but built the other way round: the model is
constructed without weights, its layers are read and matched as they are, and then each layer gets its weights where its
replacement wants them and is replaced before the next one is read. Everything that can be wrong with the checkpoint is
found before the first weight is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import catalogue
from ..fused.packed import trim
from ..plans import Plan, settle
from ..replace import NothingReplacedWarning, Replacement, nothing_replaced, survey
from .fill import Filler
from .names import assign
from .skeleton import Model, build_skeleton
from .stored import CheckpointError, open_checkpoint

if TYPE_CHECKING:
    from ..base import DSPolicy
    from ..swap import Swap

__all__ = ["CheckpointError", "Loaded", "load_replaced"]


@dataclass(frozen=True)
class Loaded(Replacement):
    """A replacement whose model came from a checkpoint. ``unused`` names its entries that belong to a head which the
    model does not have, or to other parts of a larger model."""

    unused: tuple[str, ...] = ()


def load_replaced(
    model: Model,
    checkpoint: str | Path,
    *,
    policies: Iterable[type[DSPolicy]] | None = None,
    plan: Plan | str = Plan.AUTO,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> Loaded:
    """Build ``model`` from ``checkpoint`` with every layer replaced that one of ``policies`` (default: all) matches.

    ``model`` is a class of transformers or diffusers (its ``config.json`` lies beside the weights), a configuration, or a
    function that builds the model. ``checkpoint`` is a folder, a ``.safetensors`` file or a ``.safetensors.index.json``;
    ``variant``, as for ``from_pretrained``, names one of a folder's ("fp16").
    ``dtype`` is that of the configuration, or else of the checkpoint, where it is not given; of diffusers' models it is torch's
    default then, as diffusers has it.

    The model, on the CPU and in evaluation mode, is the result's ``model``; the rest is as after ``replace_module``.
    Weights that need no other layout are mapped from their files, which have to stay as they are while it lives. Raises
    ``CheckpointError`` with a line for each entry that is missing, unexpected, of the wrong shape or unreadable, and
    ``PlanUnavailable``.
    """
    settle(plan)
    stored = open_checkpoint(checkpoint, variant)
    built = build_skeleton(model, stored, dtype)
    execution = settle(plan, built.parameters())
    assignment = assign(built, stored)
    found, left = survey(built, tuple(catalogue.policies() if policies is None else policies))
    filler = Filler(assignment.places)
    with torch.no_grad():
        for one, swap in found:
            swap.execution = execution
            _fill_layer(filler, f"{one.path}." if one.path else "", swap)
            swap.install()
        filler.fill(assignment.places)
    if execution is Plan.PACKED:
        trim()
    _finish(built, stored.folder)
    if not found:
        warnings.warn(nothing_replaced(built, left), NothingReplacedWarning, stacklevel=2)
    return Loaded(built, tuple(one for one, _ in found), tuple(left), tuple(swap for _, swap in found), assignment.unused)


def _fill_layer(filler: Filler, prefix: str, swap: Swap) -> None:
    layout = swap.layout()
    if layout is None:
        filler.fill([name for name in filler.places if name.startswith(prefix)])
        return
    for group in layout:
        names = tuple(prefix + name for name in group)
        if len(names) > 1:
            filler.fill_together(names)
        else:
            filler.fill(names)


def _finish(model: Any, folder: Path) -> None:
    """What transformers does besides weights: nothing is initialised again, and generation is set up as it was saved."""
    if hasattr(model, "_init_weights"):
        for module in model.modules():
            module._is_hf_initialized = True
    if hasattr(model, "can_generate") and model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = type(model.generation_config).from_pretrained(str(folder))
