"""Before and after: a replacement can be taken back without a trace."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..trial import Disagreement, Handle, Trial
from .base import Property, identical, lively, living
from .weights import FACTOR, Scaled


def same_state(original: nn.Module, other: nn.Module, what: str, *, strides: bool = True) -> None:
    """Raise unless names, order, shapes, dtypes and bits of all parameters and buffers are equal, and their strides
    where asked for: a replacement may lay weights out otherwise until it is reverted."""
    mine, its = original.state_dict(), other.state_dict()
    if list(mine) != list(its):
        changed = sorted(mine.keys() ^ its.keys()) or "their order"
        raise Disagreement(f"{what}: state_dict names changed ({changed})")
    for name, tensor in mine.items():
        if not isinstance(tensor, Tensor):  # a module's extra state: megatron-core's linears have one, None
            if tensor != its[name]:
                raise Disagreement(f"{what}: {name} is not the original's")
            continue
        if tensor.dtype != its[name].dtype or not torch.equal(tensor, its[name]):
            raise Disagreement(f"{what}: {name} is not bit for bit the original's")
        if strides and tensor.stride() != its[name].stride():
            raise Disagreement(f"{what}: {name} has strides {its[name].stride()}, the original {tensor.stride()}")


def same_classes(original: nn.Module, other: nn.Module, what: str) -> None:
    """Raise unless every module is of the original's class."""
    for (path, mine), (_, its) in zip(original.named_modules(), other.named_modules(), strict=True):
        if not _same_class(mine, its):
            raise Disagreement(f"{what}: {path or 'model'} is a {type(its).__name__}, not a {type(mine).__name__}")


def _same_class(mine: nn.Module, its: nn.Module) -> bool:
    """torch makes a class of its own of each module that is parametrized."""
    if parametrize.is_parametrized(mine):
        return type(its).__bases__ == type(mine).__bases__
    return type(its) is type(mine)


def same_bits(trial: Trial, model: nn.Module, what: str) -> None:
    """Raise unless ``model`` computes bit for bit what the original does."""
    expected = living(trial.expected_outputs, trial.inputs.valid)
    identical(expected, trial.case.run(model, trial.fresh_inputs()), what)


def _revert(trial: Trial) -> None:
    handle = trial.replaced
    trial.run_replaced(handle.model, trial.fresh_inputs())
    _learn(trial.original, handle.model, trial.example.seed)
    when = "after revert"
    if trial.example.seed % 2:
        _wrap_forwards(trial.original, handle.model)
        when = "after revert, forwards wrapped before"
    hooks = [(module, module.register_forward_hook(lambda *_: None)) for module in handle.model.modules()]
    handle.revert()
    _still_there(hooks)
    same_classes(trial.original, handle.model, when)
    same_state(trial.original, handle.model, when)
    _same_storages(trial.original, handle.model)
    same_bits(trial, handle.model, when)
    _nothing_left(trial.original, handle.model, when)


def _still_there(hooks: list[tuple[nn.Module, Any]]) -> None:
    """Raise unless the module of each hook has it; take them away."""
    for module, hook in hooks:
        if hook.id not in module._forward_hooks:
            raise Disagreement(f"after revert: a {type(module).__name__} has lost a hook that was set while it was replaced")
        hook.remove()


def _wrap_forwards(original: nn.Module, model: nn.Module) -> None:
    """Wrap the bound forward of each module whose class is not the original's, as offloading and casting by layers do."""
    classes = {path: type(module) for path, module in original.named_modules()}
    for path, module in model.named_modules():
        if type(module) is not classes.get(path):
            module.forward = functools.partial(module.forward)


def _learn(original: nn.Module, other: nn.Module, seed: int) -> None:
    """Change some parameters of both, as training, loading and adapting do: reverting must not bring the old ones back."""
    change = (_written, _assigned, _exchanged, _laid_otherwise, _parametrized)[seed // 2 % 5]
    copies = copy.deepcopy(original)
    for name, _ in list(original.named_parameters())[::3]:
        for side in (original, other):
            change(side, name, copies)


def _written(side: nn.Module, name: str, copies: nn.Module) -> None:
    with torch.no_grad():
        side.get_parameter(name).mul_(FACTOR)


def _assigned(side: nn.Module, name: str, copies: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    own = side.get_parameter(name)
    setattr(side.get_submodule(path), leaf, nn.Parameter(FACTOR * own.detach(), requires_grad=own.requires_grad))


def _laid_otherwise(side: nn.Module, name: str, copies: nn.Module) -> None:
    """Another parameter, whose values lie in memory in another order: the old one's strides are not its own."""
    _assigned(side, name, copies)
    new = side.get_parameter(name)
    if new.dim() > 1:
        new.data = new.data.transpose(0, -1).contiguous().transpose(0, -1)


def _parametrized(side: nn.Module, name: str, copies: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    if path:
        parametrize.register_parametrization(side.get_submodule(path), leaf, Scaled())


def _exchanged(side: nn.Module, name: str, copies: nn.Module) -> None:
    """Another module in the place of the one that holds the parameter."""
    path, _, leaf = name.rpartition(".")
    other = copy.deepcopy(copies.get_submodule(path))
    _written(other, leaf, copies)
    if path:
        side.set_submodule(path, other)


def _same_storages(original: nn.Module, other: nn.Module) -> None:
    """Raise unless every parameter lies in a storage as large as the original's: in none that was made for several."""
    for (name, mine), its in zip(original.named_parameters(), other.parameters(), strict=True):
        sizes = mine.untyped_storage().nbytes(), its.untyped_storage().nbytes()
        if sizes[0] != sizes[1]:
            raise Disagreement(f"after revert: {name} lies in a storage of {sizes[1]} bytes, the original's of {sizes[0]}")


def _nothing_left(original: nn.Module, other: nn.Module, what: str) -> None:
    """Raise where something is still set on a module: what is saved then cannot be loaded where there is no replacement."""
    for (path, mine), (_, its) in zip(original.named_modules(), other.named_modules(), strict=True):
        left = sorted(vars(its).keys() - vars(mine).keys() - {"forward"})  # somebody else may have wrapped it
        if left:
            raise Disagreement(f"{what}: {', '.join(left)} is still set on {path or 'the model'}")


def _again(trial: Trial) -> None:
    """Replaced twice over, reverted by either handle, and replaced once more."""
    handle = trial.replaced
    model = handle.model
    before = lively(trial, model)
    second = _replaced_already(trial, model)
    identical(before, trial.run_replaced(model, trial.fresh_inputs()), "after replacing what is replaced already")
    second.revert()
    identical(before, trial.run_replaced(model, trial.fresh_inputs()), "after reverting a handle that replaced nothing")
    parameters = {name: (one, one.requires_grad) for name, one in model.named_parameters()}
    handle.revert()
    handle.revert()
    same_classes(trial.original, model, "after reverting twice")
    same_state(trial.original, model, "after reverting twice")
    _same_parameters(parameters, model, "after revert")
    training = bool(trial.example.seed % 2)  # as a model is that was just made
    again = trial.replace(model.train(training))
    model.eval()
    _same_parameters(parameters, model, "after replacing")
    what = f"replaced, reverted, replaced{' in training mode' if training else ''}"
    identical(before, trial.run_replaced(again.model, trial.fresh_inputs()), what)


def _same_parameters(before: dict[str, tuple[nn.Parameter, bool]], model: nn.Module, when: str) -> None:
    """Raise unless ``model`` has the parameters of ``before`` themselves, which an optimiser may hold, as trainable as then."""
    for name, parameter in model.named_parameters():
        own, trained = before[name]
        if parameter is not own:
            raise Disagreement(f"{when}: {name} is another parameter, and not the one that an optimiser holds")
        if parameter.requires_grad is not trained:
            raise Disagreement(f"{when}: requires_grad of {name} is {not trained}, and was {trained}")


def _replaced_already(trial: Trial, model: nn.Module) -> Handle:
    classes = [type(module) for module in model.modules()]
    handle = trial.replacer(model)
    if handle.replaced:
        raise Disagreement(f"{len(handle.replaced)} layers that were replaced already were replaced again")
    if [type(module) for module in model.modules()] != classes:
        raise Disagreement("replacing again replaced nothing by its own account, and changed classes")
    return handle


REVERT = Property(
    name="revert",
    statement="Reverting gives back the original model with the parameters and modules that it has by then, and leaves nothing "
    "on it: classes, names, bits, strides and results.",
    check=_revert,
    exact=False,
    share=0.1,
)

IDEMPOTENCE = Property(
    name="replaced again",
    statement="Replacing a replaced model changes nothing, reverting twice is reverting once, and a reverted model can "
    "be replaced again.",
    check=_again,
    exact=False,
    share=0.05,
)
