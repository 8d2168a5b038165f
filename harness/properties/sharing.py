"""Shared weights: one layer in two places, one parameter in two layers, and a parameter that others hold too."""

from __future__ import annotations

import copy
import random

import torch
from torch import nn

from ..case import Case
from ..trial import Disagreement, Handle, Trial, Vacuous
from .base import Property, same_models
from .lifecycle import same_classes, same_state


def _sharing(trial: Trial) -> None:
    trial = trial.at_least("layers", 2)
    first, second = _two_layers(trial)
    share = (_one_layer_twice, _one_parameter_twice, _held_outside)[trial.example.seed % 3]
    untouched = trial.copy()
    share(untouched, first, second, trial.example.seed)
    model = copy.deepcopy(untouched)
    ties = _ties(model)
    if not ties:
        raise Vacuous("no weights could be shared")
    handle = trial.replacer(model)
    _all_replaced(trial, handle, {first, second} if share is not _one_layer_twice else {first})
    same_models(trial, untouched, model, "shared weights")
    _change(untouched, model, first, trial.example.seed)
    same_models(trial, untouched, model, "shared weights, changed in place")
    if _ties(model) != ties:
        raise Disagreement("weights that were shared are not shared any more, or others")
    handle.revert()
    same_classes(untouched, model, "shared weights, reverted")
    same_state(untouched, model, "shared weights, reverted")
    if _ties(model) != ties:
        raise Disagreement("after revert, weights that were shared are not shared any more, or others")


def _two_layers(trial: Trial) -> tuple[str, str]:
    """Paths of two layers that are replaced and have the same parameters."""
    paths = [one.path for one in trial.replaced.replaced]
    shapes = [[(n, p.shape) for n, p in trial.original.get_submodule(path).named_parameters()] for path in paths]
    for i, path in enumerate(paths):
        for j in range(i + 1, len(paths)):
            if shapes[i] == shapes[j]:
                return path, paths[j]
    raise Vacuous("no two layers of the model are alike")


def _one_layer_twice(model: nn.Module, first: str, second: str, seed: int) -> None:
    parent, _, name = second.rpartition(".")
    setattr(model.get_submodule(parent), name, model.get_submodule(first))


def _one_parameter_twice(model: nn.Module, first: str, second: str, seed: int) -> None:
    names = [name for name, _ in model.get_submodule(first).named_parameters()]
    for name in random.Random(seed).sample(names, min(1 + seed % 3, len(names))):
        path, _, leaf = name.rpartition(".")
        parameter = model.get_submodule(first).get_parameter(name)
        setattr(model.get_submodule(second).get_submodule(path), leaf, parameter)


def _held_outside(model: nn.Module, first: str, second: str, seed: int) -> None:
    """A head whose weight is a layer's, as a tied embedding's is."""
    chosen = random.Random(seed).choice([one for _, one in model.get_submodule(first).named_parameters()])
    head = nn.Module()
    head.register_parameter("weight", chosen)
    model.add_module("tied_head", head)


def _ties(model: nn.Module) -> set[frozenset[str]]:
    """Groups of names that lead to one parameter."""
    holders: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(name)
    return {frozenset(names) for names in holders.values() if len(names) > 1}


def _all_replaced(trial: Trial, handle: Handle, paths: set[str]) -> None:
    trial.evidence.replaced += len(handle.replaced)
    trial.evidence.expected += len(handle.replaced)
    missing = paths - {one.path for one in handle.replaced}
    if missing:
        reasons = "; ".join(sorted({str(one.reason) for one in handle.left}))
        raise Disagreement(f"with shared weights {', '.join(sorted(missing))} was not replaced ({reasons})")


def _change(untouched: nn.Module, model: nn.Module, first: str, seed: int) -> None:
    """Change every parameter of one layer by the same amount on both sides."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(untouched.get_submodule(first).parameters(), model.get_submodule(first).parameters(), strict=True)
    with torch.no_grad():
        for mine, its in pairs:
            shift = 0.3 * torch.randn(mine.shape, generator=generator, dtype=mine.dtype).to(mine.device)
            mine.add_(shift)
            its.add_(shift)


def _varies_layers(case: Case) -> bool:
    return case.layered and any(axis.name == "layers" and len(axis.values) > 1 for axis in case.axes)


SHARING = Property(
    name="shared weights",
    statement="A layer used twice, a parameter of two layers and one that others hold too stay shared, and a change in "
    "place reaches every place.",
    check=_sharing,
    applies=_varies_layers,
    share=0.05,
)
