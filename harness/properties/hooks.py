"""Hooks: whatever somebody put on a model, before or after the replacement, is called as often and has its effect."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..nested import mapped, tensors_in
from ..trial import Disagreement, Trial, original_side, replacement_side
from .base import Property, same_outputs, same_tensor
from .equality import main_output, valid_positions
from .sizes import call_or_steps, prompted

SCALE = 2.0
"""What a hook multiplies floats by, so that it shows whether it had its effect."""


def scaled(value: Any) -> Any:
    """``value`` as a hook here leaves it, tensors within containers too."""
    changed = mapped(value, lambda one: one * SCALE if one.is_floating_point() else one)
    like_it: Callable[..., Any] = type(value)
    return like_it(**changed) if is_dataclass(value) else changed


class Hook:
    """One hook on one module: counts its calls, and scales what it is shown or keeps it, with a copy."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        self.module = module
        self.calls = 0
        self.shown: list[tuple[Tensor, Tensor]] = []
        self.remove: Callable[[], None] = getattr(self, f"_{kind}")()

    def _output(self) -> Callable[[], None]:
        return self.module.register_forward_hook(lambda _, args, output: self._count(output)).remove

    def _input(self) -> Callable[[], None]:
        return self.module.register_forward_pre_hook(lambda _, args: self._count_first(args)).remove

    def _global(self) -> Callable[[], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return self._count(output) if module is self.module else None

        return register_module_forward_hook(hook).remove

    def _global_input(self) -> Callable[[], None]:
        def hook(module: nn.Module, args: Any) -> Any:
            return self._count_first(args) if module is self.module else None

        return register_module_forward_pre_hook(hook).remove

    def _patch(self) -> Callable[[], None]:
        """What accelerate and others do: a forward of the instance's own."""
        own = self.module.forward
        self.module.forward = lambda *args, **kwargs: self._count(own(*args, **kwargs))

        return lambda: vars(self.module).pop("forward", None)

    def _look(self) -> Callable[[], None]:
        """What keeps activations does: it changes nothing, and holds on to what it was shown."""

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            self.calls += 1
            shown = (*tensors_in(args), main_output(output))  # beside it there may be weights that nobody asked for
            self.shown += [(one, one.clone()) for one in shown if isinstance(one, Tensor) and one.is_floating_point()]

        return self.module.register_forward_hook(hook).remove

    def _count(self, output: Any) -> Any:
        self.calls += 1
        return scaled(output)

    def _count_first(self, args: tuple[Any, ...]) -> Any:
        self.calls += 1
        return (scaled(args[0]), *args[1:]) if args else None


KINDS = {
    "output": "a forward hook",
    "input": "a forward pre-hook",
    "global": "a hook on all modules, of which it minds one,",
    "global_input": "a pre-hook on all modules, of which it minds one,",
    "patch": "a forward of its own",
    "look": "a forward hook that only looks",
}


LOOKED_AT = 3
"""Modules of a layer at a time: with a hook on each of them a replacement may leave all to the original."""
LONG = 0.25
"""The share of examples that are as long as a prompt."""
MODULES = 12
"""Modules hooked at a time where a whole model is replaced, which has hundreds."""


def _hooks(trial: Trial) -> None:
    chosen = random.Random(trial.example.seed)
    trial = prompted(trial) if chosen.random() < LONG else trial
    kind = chosen.choice((*KINDS, "look"))
    late = kind in ("global", "global_input") or chosen.random() < 0.5
    paths = _paths(trial, chosen, kind, late=late)
    run, words = call_or_steps(trial, steps=chosen.random() < 0.5)
    model = trial.replaced.model if late else trial.copy()
    its = [Hook(model.get_submodule(path), kind) for path in paths]
    mine = [Hook(trial.original.get_submodule(path), kind) for path in paths]
    where = ", ".join(paths) if trial.case.layered else f"each of {len(paths)} modules"
    what = f"{KINDS[kind]} on {where}, put there {'after' if late else 'before'} the replacement{words}"
    try:
        if not late:
            _replace_hooked(trial, model)
            for hook in its:
                hook.calls, hook.shown = 0, []  # a policy may try a layer out before it replaces it
        with original_side(f"with {what}"):
            expected = run(trial.original, trial.fresh_inputs())
        with replacement_side(f"with {what}"):
            actual = run(model, trial.fresh_inputs())
    finally:
        for hook in (*mine, *its):
            hook.remove()
    for path, own, other in zip(paths, mine, its, strict=True):
        if own.calls != other.calls:
            raise Disagreement(f"{what}: called {other.calls} times on {path or 'the model'}, in the original {own.calls} times")
        _same_shown(trial, own, other, f"{what}: {path or 'the model'}")
    same_outputs(trial, expected, actual, trial.inputs.valid, what)
    _gone(trial, model, what)


def _same_shown(trial: Trial, own: Hook, other: Hook, what: str) -> None:
    """Raise unless both were shown the same, and what they keep is still the same after the call. Padding is nobody's."""
    mine, its = own.shown, other.shown
    if [one.shape for one, _ in mine] != [one.shape for one, _ in its]:
        shapes = (", ".join(str(tuple(one.shape)) for one, _ in shown) for shown in (its, mine))
        raise Disagreement("{}: is shown tensors of shapes {}, in the original {}".format(what, *shapes))
    everywhere = trial.inputs.valid is None or bool(trial.inputs.valid.all())
    for expected, actual in zip(mine, its, strict=True):
        where = valid_positions(trial, expected[0])
        if everywhere or where is not None:
            same_tensor(trial, expected[1], actual[1], where, f"{what}: what it is shown")
            same_tensor(trial, expected[0], actual[0], where, f"{what}: what it was shown, after the call")


def _paths(trial: Trial, chosen: random.Random, kind: str, *, late: bool) -> list[str]:
    """A layer or a module inside it, some of those for a hook that only looks; some modules inside a model that is replaced as
    a whole, and in half of the examples the model itself. What has a forward of its own before the replacement is a layer, as
    accelerate's are; a whole model with one is refused."""
    layer = chosen.choice(trial.replaced.replaced).path
    inner = [name for name, _ in trial.original.get_submodule(layer).named_modules() if name]
    if not trial.case.layered:
        itself = [layer] if chosen.random() < 0.5 and (late or kind != "patch") else []
        return itself + chosen.sample(inner, min(MODULES, len(inner)))
    if kind == "look":
        return [f"{layer}.{name}" for name in chosen.sample(inner, min(LOOKED_AT, len(inner)))]
    if kind == "patch" and not late:
        return [layer]
    return [chosen.choice([layer, *(f"{layer}.{name}" for name in chosen.sample(inner, min(2, len(inner))))])]


def _replace_hooked(trial: Trial, model: nn.Module) -> None:
    """Replace a model with a hook on it. A policy that tries layers out may refuse one, with a reason."""
    handle = trial.replacer(model)
    if len(handle.replaced) + len(handle.left) < trial.case.expected(trial.example):
        raise Disagreement(f"{len(handle.replaced)} layers with a hook were replaced and {len(handle.left)} refused")
    trial.evidence.replaced += len(handle.replaced)
    trial.evidence.expected += len(handle.replaced)


def _gone(trial: Trial, model: nn.Module, what: str) -> None:
    """With the hook taken away, the fused path runs and computes what the original computes."""
    expected: dict[str, Tensor] = trial.run_original(trial.inputs)
    actual = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, f"{what}, and taken away")


HOOKS = Property(
    name="hooks",
    statement="Hooks on a layer, a whole model or inside it, put there before the replacement or after, are called as often as "
    "in the original, in a call and in steps of decoding, are shown the same, and have the same effect.",
    check=_hooks,
    share=0.08,
)
