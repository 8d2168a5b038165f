"""Calls from several threads, as servers make them. What one call keeps anywhere but on its own stack, another may overwrite.

Threads that run freely meet each other's memory by chance. Here the one is stopped inside a replaced layer, before an operator
that the example's seed chooses, until the other has made a whole call.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..case import Inputs
from ..trial import Trial, Vacuous
from .base import Property, same_outputs
from .calls import Outputs, alike
from .inputs import other_inputs

PATIENCE = 0.1
"""Seconds that the stopped call waits: a replacement may let one thread in after the other."""
STOPS = 3
"""Operators of an example before which the call is stopped."""
ALIKE = 0.7
"""How often the other thread's call has the same shapes: that is what memory is kept by."""

Thunk = Callable[[], Outputs]


class Stopped(TorchDispatchMode):
    """Counts operators inside layers and calls ``meanwhile`` before the ``at``-th; modes are of their thread alone."""

    def __init__(self, at: int = -1, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.at = at
        self.meanwhile = meanwhile
        self.depth = 0
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.depth:
            if self.seen == self.at:
                self.meanwhile()
            self.seen += 1
        return func(*args, **(kwargs or {}))

    def enter(self, *_: Any) -> None:
        self.depth += 1

    def leave(self, *_: Any) -> None:
        self.depth -= 1


@contextlib.contextmanager
def watched(layers: list[nn.Module], mode: Stopped) -> Iterator[None]:
    """While open, ``mode`` knows when this thread is inside one of ``layers``; without any it takes all for inside."""
    mode.depth = 0 if layers else 1
    with contextlib.ExitStack() as hooks, mode:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(mode.enter))
            hooks.enter_context(layer.register_forward_hook(mode.leave))
        yield


def layers_of(trial: Trial, model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` that the trial replaces; none where that is the model as a whole."""
    return [model.get_submodule(one.path) for one in trial.replaced.replaced] if trial.case.layered else []


def interrupted(layers: list[nn.Module], first: Thunk, second: Thunk, chosen: random.Random) -> tuple[Outputs, Outputs]:
    """The results of ``first``, stopped before an operator inside ``layers`` while another thread runs ``second``, and of
    ``second``."""
    made: list[Future[Outputs]] = []
    with ThreadPoolExecutor(1) as pool:

        def meanwhile() -> None:
            made.append(pool.submit(second))
            wait(made, PATIENCE)

        mode = Stopped()
        with watched(layers, mode):
            outputs = first()
        while not made:  # a first call may have more operators than later ones
            if not mode.seen:
                raise Vacuous("no operator ran inside the layers")
            mode = Stopped(chosen.randrange(mode.seen), meanwhile)
            with watched(layers, mode):
                outputs = first()
                # torch notes for all threads at once whether a mode is active: the other's must end before this one does.
                wait(made)
    return outputs, made[0].result()


def another_threads(trial: Trial, chosen: random.Random) -> Inputs:
    """Inputs of the other thread: other numbers in the same shapes, or other shapes."""
    return alike(trial, 1) if chosen.random() < ALIKE else other_inputs(trial, 1)


def _threads(trial: Trial) -> None:
    model, chosen = trial.replaced.model, random.Random(trial.example.seed)
    others = another_threads(trial, chosen)
    expected = trial.run_original(others)

    def second() -> Outputs:
        with trial.mode():
            return trial.case.run(model, others)

    layers = layers_of(trial, model)
    for _ in range(STOPS):
        first, other = interrupted(layers, lambda: trial.run_replaced(model, trial.fresh_inputs()), second, chosen)
        same_outputs(trial, trial.expected_outputs, first, trial.inputs.valid, "a call during which another thread made one")
        same_outputs(trial, expected, other, others.valid, "a call made during another thread's")


THREADS = Property(
    name="several threads",
    statement="A call gives the same when another thread calls the same model in the midst of it, and so does that call.",
    check=_threads,
    share=0.05,
)
