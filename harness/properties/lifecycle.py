"""Before and after: a replacement can be taken back without a trace."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..trial import Disagreement, Handle, Trial, fused_states, replacement_side
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
    lowered, dropped = _meanwhile(trial)
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
    _same_settings(trial.original, handle.model, when)
    for model in (trial.original, handle.model):
        (model.to(trial.dtype) if lowered else model).eval()
    if not dropped or trial.asked("a model without one of its layers", lambda: trial.expected_outputs) is not None:
        same_bits(trial, handle.model, when)
    _nothing_left(trial.original, handle.model, when)
    if dropped:
        same_classes(*dropped, f"{when}, a layer that was dropped before")


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


def _meanwhile(trial: Trial) -> tuple[bool, tuple[nn.Module, nn.Module] | None]:
    """What users do to a model that is replaced: train some of its parameters, set numbers, and lower its dtype or drop a layer.
    Returns whether the dtype is lower, and the layer that was dropped, of the original and of the replaced model."""
    sides = trial.original, trial.replaced.model
    for side in sides:
        side.train()
        for parameter in list(side.parameters())[1::3]:
            parameter.requires_grad_(not parameter.requires_grad)
    _set_numbers(*sides)
    if random.Random(trial.example.seed).randrange(3):
        return False, _drop(trial)
    for side in sides:
        side.to(torch.bfloat16)
    return True, None


def _set_numbers(original: nn.Module, other: nn.Module) -> None:
    """Other epsilons and scales in both, where both have the same."""
    for path, mine in original.named_modules():
        its = other.get_submodule(path)
        for name, value in list(vars(mine).items()):
            if type(value) is float and vars(its).get(name) == value:
                setattr(mine, name, FACTOR * value)
                setattr(its, name, FACTOR * value)


def _drop(trial: Trial) -> tuple[nn.Module, nn.Module] | None:
    """Take the first of several layers in a row out of both; those behind it then have other paths."""
    for one in trial.replaced.replaced:
        path, _, index = one.path.rpartition(".")
        rows = [side.get_submodule(path) for side in (trial.original, trial.replaced.model)]
        if all(isinstance(row, nn.ModuleList) and len(row) > 1 for row in rows):
            mine, its = (row.pop(int(index)) for row in rows)  # type: ignore[operator]  # they are lists
            return mine, its
    return None


def _same_settings(original: nn.Module, other: nn.Module, when: str) -> None:
    """Raise unless modules train, and parameters are trained, in both alike, and numbers and flags are equal."""
    for (path, mine), (_, its) in zip(original.named_modules(), other.named_modules(), strict=True):
        for name, value in vars(mine).items():
            if type(value) in (bool, int, float) and vars(its).get(name) != value:
                raise Disagreement(f"{when}: {name} of {path or 'the model'} is {vars(its).get(name)}, and was set to {value}")
    for (name, mine), its in zip(original.named_parameters(), other.parameters(), strict=True):
        if mine.requires_grad is not its.requires_grad:
            raise Disagreement(f"{when}: requires_grad of {name} is {its.requires_grad}, and was set to {mine.requires_grad}")


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
    new = (FACTOR * own.detach()).contiguous()  # whatever strides the replacement gave the old one
    setattr(side.get_submodule(path), leaf, nn.Parameter(new, requires_grad=own.requires_grad))


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
    if trial.asked("to be printed", lambda: repr(trial.original)):
        with replacement_side("when it is printed"):
            repr(model)
    anywhere = bool(fused_states(model))  # others may go by what the whole model is
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
    hung = _hang(model)
    again, how = _replaced_anew(trial, model.train(training), anywhere=anywhere)
    if any(module.training is not training for module in model.modules()):
        raise Disagreement(f"replacing a model whose training mode is {training} changes that")
    model.eval()
    _same_parameters(parameters, model, "after replacing")
    _still_hung(hung, model, "after replacing")
    what = f"replaced, reverted, replaced{how}{' in training mode' if training else ''}"
    identical(before, trial.run_replaced(model, trial.fresh_inputs()), what)
    for one in again:
        one.revert()
    _still_hung(hung, model, "after revert")


def _replaced_anew(trial: Trial, model: nn.Module, *, anywhere: bool) -> tuple[list[Handle], str]:
    """The model, or what it is the base of, or its layers one by one, if the replacer finds layers ``anywhere``."""
    where = random.Random(trial.example.seed).randrange(3) if anywhere else 0
    if where == 0:
        return [trial.replace(model)], ""
    if where == 1:
        head = nn.ModuleDict({"of": nn.ModuleDict({"some": nn.ModuleDict({"base": model})})})
        return [trial.replace(head)], " below a head"
    handles = [trial.replacer(model.get_submodule(one.path)) for one in trial.replaced.replaced]
    for one, handle in zip(trial.replaced.replaced, handles, strict=True):
        if len(handle.replaced) != 1:
            raise Disagreement(f"{one.path}, which was replaced in its model, is not when it is given by itself")
    return handles, " layer by layer"


def _hang(model: nn.Module) -> dict[str, Any]:
    """Give parameters gradients, hooks and attributes, and modules hooks on their state."""
    for parameter in [*model.parameters()][::3]:
        parameter.grad = torch.zeros_like(parameter)
        parameter.decays = False  # type: ignore[attr-defined]  # as optimisers and loaders have it
        if parameter.requires_grad:
            parameter.register_hook(_nothing)
            parameter.register_post_accumulate_grad_hook(_nothing)
    for module in [*model.modules()][::3]:
        module.register_state_dict_post_hook(_nothing)
        module.register_load_state_dict_pre_hook(_nothing)
    return dict(_hung(model))


def _nothing(*_: Any) -> None:
    """A hook."""


def _hung(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What hangs on parameters and modules, by what is said of it."""
    for name, parameter in model.named_parameters():
        yield f"the gradient of {name}", parameter.grad
        yield f"an attribute of {name}", getattr(parameter, "decays", None)
        hooks = parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)
        yield f"a hook on {name}", [len(one or ()) for one in hooks]
    for path, module in model.named_modules():
        on_state = module._state_dict_hooks, module._load_state_dict_pre_hooks
        yield f"a hook on the state of {path or 'the model'}", [len(one) for one in on_state]


def _still_hung(hung: dict[str, Any], model: nn.Module, when: str) -> None:
    now = dict(_hung(model))
    lost = [what for what, one in hung.items() if now[what] is not one and now[what] != one]
    if lost:
        raise Disagreement(f"{when}: {lost[0]} is lost")


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
    statement="Reverting gives back the original model with the parameters, modules and settings that it has by then, and leaves "
    "nothing on it: classes, names, bits, strides and results.",
    check=_revert,
    exact=False,
    share=0.1,
)

IDEMPOTENCE = Property(
    name="replaced again",
    statement="Replacing a replaced model changes nothing, reverting twice is reverting once, and a reverted model can "
    "be replaced again, below a head and layer by layer too; what hangs on its parameters and modules stays, and it can be "
    "printed.",
    check=_again,
    exact=False,
    share=0.05,
)
