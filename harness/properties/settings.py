"""What is set on a module inside a layer or in its configuration: a number, a flag, a function, another class, training mode
for it alone; and what is put there: a bias, a parametrization, an adapter around it, another implementation of attention.

A replacement reads such things when it is made. Set later, each has to have the effect that it has in the original (a norm's
epsilon, a scale, the dropout that is left on to sample from a model), and none any more once it is taken back.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..numerics import alive
from ..trial import Trial, Vacuous, fused_path, original_side, replacement_side
from .base import Property, living, same_outputs
from .cache import with_cache
from .hooks import scaled
from .sizes import decoded

Undo = Callable[[], object]
Change = Callable[[nn.Module], Undo]
"""Sets something on a module, of the original or of the replaced model, and returns how to take it back."""
Kind = Callable[[nn.Module], list[tuple[str, Change]]]
"""Changes of one kind that can be made to a module, each with its words."""
STEPWISE = 64
"""Bit of an example's seed."""
TRIES = 4
"""Changes of a kind that are tried until one makes a difference."""
FUNCTIONS = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
"""What is called and has no class of its own to inherit from."""
FREE_U = {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
"""Its factors, as they are recommended for Stable Diffusion 1."""
FACTOR = 1.25
"""By which a parametrization makes a weight another."""
DROPPED = 0.5
"""The share of elements that a dropout takes where one is left on."""


@dataclass(frozen=True)
class Later:
    """What is set on the module at ``path``, in words, and how."""

    path: str
    what: str
    change: Change
    must_matter: bool
    """Whether it is asked about only where it makes a difference to the original."""


def _settings(trial: Trial) -> None:
    model = trial.replaced.model
    trial.run_replaced(model, trial.fresh_inputs())
    with original_side():
        plain = living(_outputs(trial, trial.original), trial.inputs.valid)
    found = [one for one in (_to_be_judged(trial, proposed, plain) for proposed in _proposed(trial)) if one is not None]
    if not found:
        raise Vacuous("the original runs with nothing that was set on its modules")
    for later, expected in found:
        _same_with(trial, model, later, expected, plain)


def _to_be_judged(trial: Trial, proposed: Iterable[Later], plain: dict[str, Tensor]) -> tuple[Later, dict[str, Tensor]] | None:
    """The first change that makes a difference to the original, which gives ``plain`` without it, and what it gives then; or the
    first with which it runs."""
    runs = None
    for later in proposed:
        try:
            undo = later.change(trial.original.get_submodule(later.path))
        except Exception:  # not every attention has another implementation, not every weight a parametrization
            continue
        expected = _outputs_of_original(trial)
        undo()
        if expected is not None and not _equal(expected, plain):
            return later, expected
        if expected is not None and runs is None and not later.must_matter:
            runs = later, expected
    return runs


def _same_with(trial: Trial, model: nn.Module, later: Later, expected: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    undo = later.change(model.get_submodule(later.path))
    with replacement_side(f"with {later.what}, set after the replacement"):
        actual = _outputs(trial, model)
    same_outputs(trial, expected, actual, trial.inputs.valid, f"{later.what}, set after the replacement")
    undo()
    with replacement_side(f"with {later.what}, set and taken back"), fused_path(model):
        actual = _outputs(trial, model)
    same_outputs(trial, plain, actual, trial.inputs.valid, f"{later.what}, set and taken back")


def _outputs(trial: Trial, model: nn.Module) -> dict[str, Tensor]:
    """Outputs from one state of the random generator, of one call or, where there is a cache, as often of a prompt and steps."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(trial.example.seed)
        if trial.case.caches(trial.example) and trial.example.seed & STEPWISE:
            return decoded(model, with_cache(trial.fresh_inputs()))
        return trial.case.run(model, trial.fresh_inputs())


def _outputs_of_original(trial: Trial) -> dict[str, Tensor] | None:
    """None where the original cannot run with what was set, or gives nothing to compare with."""
    try:
        outputs = _outputs(trial, trial.original)
    except Exception:  # whatever is raised says so: Megatron's, where a library that it can do without is missing, a NameError
        return None
    return outputs if alive(outputs, trial.inputs.valid) is None else None


def _equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def _proposed(trial: Trial) -> Iterator[Iterable[Later]]:
    """Changes of one kind after another; of the configuration or mode of layers one. The parts of a whole model are not asked
    about their mode: they drop by themselves, other elements where an image lies otherwise in memory."""
    chosen = random.Random(trial.example.seed)
    kinds: list[tuple[Kind, ...]]
    if trial.case.layered:
        kinds = [(_numbers,), (_counts,), (_flags,), (_class,), (chosen.choice((_configured, _mode)),)]
    else:
        kinds = [(_configured,), (_numbers,), (_counts,), (_flags,), (_padding,), (_freed,), (_class,)]
    for some in (*kinds, (_functions,), (chosen.choice((_implementation, _bias, _adapter, _parametrized)),)):
        yield itertools.chain.from_iterable(_of_kind(kind, trial) for kind in some)


def _of_kind(kind: Kind, trial: Trial) -> list[Later]:
    """Some changes of a kind to one of the layers, in any order: each of another class of parts or in another way, because most
    of a model's parts are of few classes."""
    chosen = random.Random(trial.example.seed)
    layer = "" if kind is _implementation else chosen.choice(trial.replaced.replaced).path
    parts = [(f"{layer}.{name}".strip("."), part) for name, part in trial.original.get_submodule(layer).named_modules()]
    chosen.shuffle(parts)
    proposed = [(type(part), path, *one) for path, part in parts if path != layer or kind is not _class for one in kind(part)]
    found = [*{(cls, what): (path, what, change) for cls, path, what, change in proposed}.values()]
    configured = kind is _configured
    if configured:  # which parts share, and most of which has no part in a call: all of it is proposed
        found = [*{what: (path, what, change) for path, what, change in found}.values()]
    some = chosen.sample(found, len(found) if configured else min(len(found), TRIES))
    return [Later(path, f"{what} of {path or 'the model'}", change, must_matter=configured) for path, what, change in some]


def _numbers(part: nn.Module) -> list[tuple[str, Change]]:
    return [(name, _to(name, value * 1.5 + 0.125)) for name, value in _set_on(part) if type(value) is float]


def _counts(part: nn.Module) -> list[tuple[str, Change]]:
    """Numbers of heads, sizes: where the original can run with others, it computes something else."""
    return [
        (f"{name} = {count}", _to(name, count))
        for name, value in _set_on(part)
        if type(value) is int
        for count in (2 * value, value // 2, value + 1)
        if count != value
    ]


def _configured(part: nn.Module) -> list[tuple[str, Change]]:
    """What a part may read of its configuration when it is called. Whole numbers, from which rotary positions are computed anew
    and for good, are left alone."""
    found = [(name, value) for name, value in getattr(getattr(part, "config", None), "__dict__", {}).items() if name[0] != "_"]
    flags = [(name, not value) for name, value in found if type(value) is bool]
    numbers = [(name, 1.5 * value + 0.125) for name, value in found if type(value) is float]
    return [(f"config.{name} = {value}", _on_config(name, value)) for name, value in flags + numbers]


def _on_config(name: str, value: Any) -> Change:
    def change(part: nn.Module) -> Undo:
        return _to(name, value)(part.config)  # type: ignore[arg-type]

    return change


def _implementation(part: nn.Module) -> list[tuple[str, Change]]:
    """The implementation of attention, of a whole model."""
    others = {"sdpa": "eager", "eager": "sdpa"}
    other = others.get(getattr(getattr(part, "config", None), "_attn_implementation", ""))
    if other is None or not hasattr(part, "set_attn_implementation"):
        return []
    return [(f"the attention's implementation {other}", _by_name(other))]


def _by_name(implementation: str) -> Change:
    def change(part: nn.Module) -> Undo:
        model: Any = part
        before = model.config._attn_implementation
        model.set_attn_implementation(implementation)
        return functools.partial(model.set_attn_implementation, before)

    return change


def _flags(part: nn.Module) -> list[tuple[str, Change]]:
    return [(name, _to(name, not value)) for name, value in _set_on(part) if type(value) is bool]


def _functions(part: nn.Module) -> list[tuple[str, Change]]:
    """What a part calls and is no part of its own: the processor of an attention, the activation of an MLP."""
    found = [(name, value) for name, value in vars(part).items() if not name.startswith("_") and callable(value)]
    others = [(f"another {name}", _to(name, _scaling(value))) for name, value in found if not isinstance(value, type)]
    objects = [(name, value) for name, value in found if not isinstance(value, FUNCTIONS)]
    return others + [(f"{name} of a subclass", _to(name, _of_a_subclass(value))) for name, value in objects]


def _scaling(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: scaled(function(*args, **kwargs))


def _of_a_subclass(function: Callable[..., Any]) -> Callable[..., Any]:
    """As somebody changes what a library's processor does: by a class that inherits from its own."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return scaled(function(*args, **kwargs))

    other = copy.copy(function)
    other.__class__ = type(type(function).__name__, (type(function),), {"__call__": call})
    return other


def _padding(part: nn.Module) -> list[tuple[str, Change]]:
    """As images that tile are made."""
    return [("padding_mode", _to("padding_mode", "circular"))] if isinstance(part, nn.Conv2d) else []


def _freed(part: nn.Module) -> list[tuple[str, Change]]:
    """FreeU, whose factors stand on no block until somebody asks for it."""
    return [("FreeU", _with_free_u)] if hasattr(part, "enable_freeu") else []


def _with_free_u(part: Any) -> Undo:
    before = [{name: vars(block)[name] for name in FREE_U if name in vars(block)} for block in part.up_blocks]
    part.enable_freeu(**FREE_U)

    def undo() -> None:
        for block, values in zip(part.up_blocks, before, strict=True):
            for name in FREE_U:
                vars(block).pop(name)
            vars(block).update(values)

    return undo


def _set_on(part: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(part).items() if not name.startswith("_") and name != "training"]


def _to(name: str, value: Any) -> Change:
    def change(part: nn.Module) -> Undo:
        before = getattr(part, name)
        setattr(part, name, value)
        return lambda: setattr(part, name, before)

    return change


def _class(part: nn.Module) -> list[tuple[str, Change]]:
    return [("the class", _of_another_class)]


def _of_another_class(part: nn.Module) -> Undo:
    """As this project replaces layers, and others cast or adapt them: a subclass of its own class, whose forward differs."""
    own = type(part)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return scaled(own.forward(self, *args, **kwargs))

    part.__class__ = type(f"Scaled{own.__name__}", (own,), {"forward": forward})

    def undo() -> None:
        part.__class__ = own

    return undo


def _bias(part: nn.Module) -> list[tuple[str, Change]]:
    """Where a part has none, and takes one."""
    weight = part._parameters.get("weight")
    if weight is None or "bias" not in part._parameters or part.bias is not None:
        return []
    values = weight.detach().flatten(1).sum(1) if weight.dim() > 1 else 1 - weight.detach()
    return [("a bias", _to("bias", nn.Parameter(values)))]


class _Adapted(nn.Module):
    """As adapters are put around a linear: with its weight and bias, and a forward that adds to what it computes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return scaled(self.base(*args, **kwargs))


def _adapter(part: nn.Module) -> list[tuple[str, Change]]:
    leaves = [name for name, child in part.named_children() if child._parameters and not child._modules]
    return [(f"an adapter around {name}", _adapting(name)) for name in leaves]


def _adapting(name: str) -> Change:
    return lambda part: _to(name, _Adapted(part.get_submodule(name)))(part)


class _Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return FACTOR * weight


def _parametrized(part: nn.Module) -> list[tuple[str, Change]]:
    return [("a parametrization", _with_parametrization)] if part._parameters.get("weight") is not None else []


def _with_parametrization(part: nn.Module) -> Undo:
    parametrize.register_parametrization(part, "weight", _Scaled())
    return lambda: parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)


def _mode(part: nn.Module) -> list[tuple[str, Change]]:
    return [("training mode", _in_training)] if _shares_dropped(part) else []


def _shares_dropped(part: nn.Module) -> list[str]:
    """Names of the numbers on ``part`` that say how much it drops in training."""
    if isinstance(part, nn.Dropout):
        return ["p"]
    return [name for name, value in _set_on(part) if type(value) is float and "dropout" in name]


def _in_training(part: nn.Module) -> Undo:
    """As whoever samples from a model leaves its dropouts on."""
    undo = [_to(name, DROPPED)(part) for name in _shares_dropped(part)]
    part.train()

    def undo_all() -> None:
        part.eval()
        for one in undo:
            one()

    return undo_all


SETTINGS = Property(
    name="settings",
    statement="A number, a flag, a function, another class or training mode, a bias, a parametrization, an adapter or the "
    "attention's implementation, set on a module inside a layer (or in its configuration) after the replacement, has the effect "
    "that it has in the original, and none once it is taken back.",
    check=_settings,
    share=0.1,
    least=6,
)
