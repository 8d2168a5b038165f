"""Replacing and reverting themselves."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from policies import replace_module
from policies.replace import Replaced, Replacement

from ..tiny import Undoing, Worst


def configured(model: nn.Module) -> Replacement:
    """Leaves a field of its own in the configuration."""
    handle = replace_module(model)
    model.config.fused = True
    return handle


def seeded(model: nn.Module) -> Replacement:
    torch.manual_seed(0)
    return replace_module(model)


def seeded_elsewhere(model: nn.Module) -> Replacement:
    """The generators of numpy and Python."""
    np.random.seed(0)
    random.seed(0)
    return replace_module(model)


def evaluating(model: nn.Module) -> Replacement:
    return replace_module(model.eval())


def loses_attribute(layer: nn.Module) -> None:
    del layer.hidden_size


def unpicklable(layer: nn.Module) -> None:
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)  # type: ignore[method-assign]


def reverting(undo: Callable[[nn.Module], Callable[[], None]]) -> Callable[[nn.Module], Replacement]:
    """A replacer that does something more when it reverts: what ``undo`` returned for a layer that was to be replaced."""

    def replacer(model: nn.Module) -> Replacement:
        undone = {path: undo(module) for path, module in model.named_modules() if path.rpartition(".")[0] == "layers"}
        handle = replace_module(model)
        return dataclasses.replace(handle, swaps=(*(Undoing(undone[one.path]) for one in handle.replaced), *handle.swaps))

    return replacer


def had(layer: nn.Module, names: Callable[[nn.Module], Iterable[tuple[str, Any]]]) -> Callable[[], None]:
    kept = [(owner, name, one) for owner in layer.modules() for name, one in names(owner)]

    def undo() -> None:
        for owner, name, one in kept:
            if not parametrize.is_parametrized(owner, name):
                setattr(owner, name, one)

    return undo


def has_its_parameters_again(layer: nn.Module) -> Callable[[], None]:
    return had(layer, lambda owner: owner.named_parameters(recurse=False))


def has_its_modules_again(layer: nn.Module) -> Callable[[], None]:
    return had(layer, nn.Module.named_children)


def has_its_strides_again(layer: nn.Module) -> Callable[[], None]:
    """Whatever has the name of a weight that was here gets that one's."""
    kept = {name: one.stride() for name, one in layer.named_parameters()}

    def undo() -> None:
        for name, one in layer.named_parameters():
            one.data = torch.empty_strided(one.shape, kept.get(name, one.stride()), dtype=one.dtype).copy_(one.data)

    return undo


def has_its_classes_again(layer: nn.Module) -> Callable[[], None]:
    return had(layer, lambda owner: [("__class__", type(owner))] if owner is not layer else [])


def was_trained(layer: nn.Module) -> Callable[[], None]:
    """Parameters are trained, or not, as they were."""
    kept = [(one, one.requires_grad) for one in layer.parameters()]

    def undo() -> None:
        for one, trained in kept:
            one.requires_grad_(trained)

    return undo


def had_its_mode(layer: nn.Module) -> Callable[[], None]:
    return had(layer, lambda owner: [("training", owner.training)])


def had_its_numbers(layer: nn.Module) -> Callable[[], None]:
    return had(layer, lambda owner: [(name, one) for name, one in vars(owner).items() if type(one) is float])


def had_its_dtype(layer: nn.Module) -> Callable[[], None]:
    dtype = next(layer.parameters()).dtype
    return lambda: layer.to(dtype) and None


def reverts_by_path(model: nn.Module) -> Replacement:
    """Where a layer was, there may be none by then."""
    handle = replace_module(model)
    looks = (Undoing(functools.partial(model.get_submodule, one.path)) for one in handle.replaced)
    return dataclasses.replace(handle, swaps=(*handle.swaps, *looks))


def replaced_and(change: Callable[[nn.Module], object]) -> Callable[[nn.Module], Replacement]:
    """A replacer that does something to the whole model besides."""

    def replacer(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        change(model)
        return handle

    return replacer


def drops_gradients(model: nn.Module) -> None:
    for one in model.parameters():
        one.grad = None


def drops_hooks_on_parameters(model: nn.Module) -> None:
    for one in model.parameters():
        one._backward_hooks = None


def drops_attributes_of_parameters(model: nn.Module) -> None:
    for one in model.parameters():
        vars(one).clear()


def drops_hooks_on_state(model: nn.Module) -> None:
    for module in model.modules():
        module._state_dict_hooks.clear()


def cannot_be_printed(layer: nn.Module) -> None:
    layer.extra_repr = lambda: layer.of_nobody  # type: ignore[assignment, method-assign, return-value]


def drops_gradients_at_last(model: nn.Module) -> Replacement:
    handle = replace_module(model)
    return dataclasses.replace(handle, swaps=(*handle.swaps, Undoing(functools.partial(drops_gradients, model))))


def passing_over(model: nn.Module, *, if_it: Callable[[nn.Module], bool]) -> Replacement:
    return Replacement(model, (), (), ()) if if_it(model) else replace_module(model)


def deaf_below_heads(model: nn.Module) -> Replacement:
    return passing_over(model, if_it=lambda model: isinstance(model, nn.ModuleDict))


def deaf_to_layers(model: nn.Module) -> Replacement:
    return passing_over(model, if_it=lambda model: hasattr(model, "self_attn"))


def keeps_a_state(layer: nn.Module) -> Callable[[], None]:
    return lambda: setattr(layer, "state", Worst())


def reverts_nothing(model: nn.Module) -> Replacement:
    return dataclasses.replace(replace_module(model), swaps=())


def counts_twice(model: nn.Module) -> Replacement:
    """Says that it replaced what was replaced already, or had to be refused."""
    handle = replace_module(model)
    replaced = handle.replaced or tuple(Replaced(one.path, one.layer_class, "Policy") for one in handle.left)
    return dataclasses.replace(handle, replaced=replaced)
