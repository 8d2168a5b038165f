"""Parameter accounting: every weight of the original arrives in the replacement, in its own slot, and stays live.

A parameter is moved on either side, by the same amount, and both outputs have to move alike. That shows a parameter
which is not used, one that is used in another's place, and one of which a stale copy is used.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..numerics import gap, tolerance_of
from ..trial import Disagreement, Trial, Vacuous, fused_path, original_side
from .base import Property
from .equality import main_output, recorded, valid_positions

SAMPLE = 8
"""Parameters moved in one example, of those that the layer has."""
MOVED = 1e-6
"""Relative change from which on an output counts as moved: far above rounding, far below what a real slot does. In a lower dtype
it is twice the tolerance there, so that a parameter which stays as it was is seen to."""
TIMES = (1, 4, 16)
"""How far a parameter is moved, tried in turn until the output is."""

Compute = Callable[[], Tensor]


def _accounting(trial: Trial) -> None:
    trial = trial.at_least("tokens", 2)
    accounts = _of_a_layer(trial) if trial.case.layered else _of_the_model(trial)
    names = [name for name, _ in accounts.mine.named_parameters()]
    chosen = random.Random(trial.example.seed)
    sample = chosen.sample(names, min(SAMPLE, len(names)))
    moved = [accounts.check(name, chosen, way) for way, name in enumerate(sample, trial.example.seed)]
    if not any(moved):
        raise Vacuous("no parameter that was moved changed the original's output")


class _Accounts:
    """Two modules that should compute the same, and how to run each on the same input."""

    def __init__(self, trial: Trial, mine: nn.Module, its: nn.Module, run_mine: Compute, run_its: Compute) -> None:
        self.trial, self.mine, self.its = trial, mine, its
        self.run_mine, self.run_its = run_mine, run_its
        with original_side():
            self.before = run_mine()
        with fused_path(its):
            self.its_before = run_its()
        self.valid = valid_positions(trial, self.before)

    def check(self, name: str, chosen: random.Random, way: int) -> bool:
        """Move ``name`` on both sides, in one of the ways by turns; True where that moved the original's output."""
        direction = _shift(self.mine.get_parameter(name), chosen.randrange(2**31))
        ways = (
            (_written, "written in place"),
            (_moved, "given other memory"),
            (_assigned, "assigned anew"),
            (_exchanged(self.mine, _around(name, chosen, self.trial)), "in a module put in the old one's place"),
        )
        moving, how = ways[way % len(ways)]
        for times in TIMES:
            shift = direction * times
            with moving(self.mine, name, shift), original_side():
                expected = self.run_mine()
            moved = not gap(self.before, expected, self.valid).within(max(MOVED, 2 * tolerance_of(expected)))
            if moved:
                break
        with moving(self.its, name, shift), fused_path(self.its):
            actual = self.run_its()
        if moving is not _written:
            self.run_its()  # so that the next move is noticed, or not, for itself
        error = gap(expected, actual, self.valid)
        if not error.within(tolerance_of(expected)):
            raise Disagreement(f"{name}, {how}: {self._diagnosis(name, shift, actual)}", error=error.error)
        self.trial.evidence.note(error.error)
        return moved

    def _diagnosis(self, name: str, shift: Tensor, actual: Tensor) -> str:
        if gap(self.its_before, actual, self.valid).within(tolerance_of(actual)):
            return "does not reach the replacement's output"
        for other, parameter in self.mine.named_parameters():
            if other != name and parameter.shape == shift.shape:
                with _written(self.mine, other, shift):
                    if gap(self.run_mine(), actual, self.valid).within(tolerance_of(actual)):
                        return f"reaches the replacement's output in the slot of {other}"
        return "moves the replacement's output otherwise than the original's"


def _of_a_layer(trial: Trial) -> _Accounts:
    path, call = random.Random(trial.example.seed).choice(sorted(recorded(trial).items()))
    mine, its = trial.original.get_submodule(path), trial.replaced.model.get_submodule(path)

    def run(layer: nn.Module) -> Compute:
        return lambda: main_output(layer(*call.args, **call.kwargs))

    return _Accounts(trial, mine, its, run(mine), run(its))


def _of_the_model(trial: Trial) -> _Accounts:
    def run(model: nn.Module) -> Compute:
        return lambda: next(iter(trial.case.run(model, trial.fresh_inputs()).values()))

    mine, its = trial.original, trial.replaced.model
    return _Accounts(trial, mine, its, run(mine), run(its))


def _shift(parameter: Tensor, seed: int) -> Tensor:
    """A random direction, of about the parameter's own size."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return (direction * (0.1 + 0.5 * float(parameter.detach().abs().mean()))).to(parameter)


@contextlib.contextmanager
def _written(module: nn.Module, name: str, shift: Tensor) -> Iterator[None]:
    """``shift`` added to the parameter in place, and taken away again bit for bit."""
    parameter = module.get_parameter(name)
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(shift)
        try:
            yield
        finally:
            parameter.copy_(kept)


@contextlib.contextmanager
def _moved(module: nn.Module, name: str, shift: Tensor) -> Iterator[None]:
    """``shift`` added in memory of its own, behind the same parameter, for a while."""
    parameter = module.get_parameter(name)
    kept = parameter.data
    parameter.data = kept + shift
    try:
        yield
    finally:
        parameter.data = kept


@contextlib.contextmanager
def _assigned(module: nn.Module, name: str, shift: Tensor) -> Iterator[None]:
    """Another ``Parameter`` in the place of this one, for a while."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    kept = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(kept.detach() + shift, requires_grad=kept.requires_grad))
    try:
        yield
    finally:
        setattr(owner, leaf, kept)


def _around(name: str, chosen: random.Random, trial: Trial) -> str:
    """The module that holds the parameter ``name``; of a layer, maybe one around it."""
    parts = name.split(".")[:-1]
    return ".".join(parts[: chosen.randint(1, len(parts))] if trial.case.layered and parts else parts)


def _exchanged(plain: nn.Module, path: str) -> Callable[[nn.Module, str, Tensor], AbstractContextManager[None]]:
    """Another module in the place of the one at ``path``, for a while: as ``plain`` has it, but for the shift."""

    @contextlib.contextmanager
    def moving(module: nn.Module, name: str, shift: Tensor) -> Iterator[None]:
        if not path:
            with _assigned(module, name, shift):
                yield
            return
        other = copy.deepcopy(plain.get_submodule(path))
        with torch.no_grad():
            other.get_parameter(name.removeprefix(f"{path}.")).add_(shift)
        above, _, leaf = path.rpartition(".")
        parent = module.get_submodule(above)
        kept = getattr(parent, leaf)
        setattr(parent, leaf, other)
        try:
            yield
        finally:
            setattr(parent, leaf, kept)

    return moving


ACCOUNTING = Property(
    name="parameter accounting",
    statement="Each parameter, moved in place or in memory of its own, assigned anew or put there with another module after "
    "the replacement, moves the output exactly as it moves the original's.",
    check=_accounting,
    share=0.08,
)
