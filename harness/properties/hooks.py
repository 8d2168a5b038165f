"""Hooks: whatever somebody put on a model, before or after the replacement, is called as often and has its effect."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..trial import Disagreement, Trial
from .base import Property, same_outputs
from .inputs import mapped

SCALE = 2.0
"""What a hook multiplies floats by, so that it shows whether it had its effect."""


def scaled(value: Any) -> Any:
    """``value`` as a hook here leaves it, tensors within containers too."""
    return mapped(value, lambda one: one * SCALE if one.is_floating_point() else one)


class Hook:
    """One hook on one module: counts its calls and scales what it is shown."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        self.module = module
        self.calls = 0
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

        def remove() -> None:
            del self.module.forward

        return remove

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
}


MODULES = 12
"""Modules hooked at a time where a whole model is replaced, which has hundreds."""


def _hooks(trial: Trial) -> None:
    chosen = random.Random(trial.example.seed)
    paths = _paths(trial, chosen)
    kind = chosen.choice(tuple(KINDS))
    late = kind in ("global", "global_input", "patch") or chosen.random() < 0.5
    model = trial.replaced.model if late else trial.copy()
    its = [Hook(model.get_submodule(path), kind) for path in paths]
    mine = [Hook(trial.original.get_submodule(path), kind) for path in paths]
    where = paths[0] if trial.case.layered else f"each of {len(paths)} modules"
    what = f"{KINDS[kind]} on {where}, put there {'after' if late else 'before'} the replacement"
    try:
        if not late:
            _replace_hooked(trial, model)
            for hook in its:
                hook.calls = 0  # a policy may try a layer out before it replaces it
        expected = trial.run_original(trial.inputs)
        actual = trial.case.run(model, trial.fresh_inputs())
    finally:
        for hook in (*mine, *its):
            hook.remove()
    for path, own, other in zip(paths, mine, its, strict=True):
        if own.calls != other.calls:
            raise Disagreement(f"{what}: called {other.calls} times on {path}, in the original {own.calls} times")
    same_outputs(trial, expected, actual, trial.inputs.valid, what)
    _gone(trial, model, what)


def _paths(trial: Trial, chosen: random.Random) -> list[str]:
    """A layer or a module inside it; some modules inside a model that is replaced as a whole."""
    layer = chosen.choice(trial.replaced.replaced).path
    inner = [name for name, _ in trial.original.get_submodule(layer).named_modules() if name]
    if not trial.case.layered:
        return chosen.sample(inner, min(MODULES, len(inner)))
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
    statement="Hooks on a layer or inside it, put there before the replacement or after, are called as often as in the "
    "original and have the same effect.",
    check=_hooks,
    share=0.06,
)
