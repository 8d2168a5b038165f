"""Where two models part: the first stage that departs, with the error it adds itself and the error it inherits.

The replaced model runs twice on what the original was given. In the ordinary run errors pile up from stage to stage. In
the second run every stage, once compared, is overwritten with the original's own value, so that the next one starts
without error: what it shows then is its own. What remains of the ordinary run's error is what it inherited.

    own        error of the stage in the second run
    inherited  error of the stage in the ordinary run, less its own, and not less than nothing

Both are relative to the largest value of the original's stage at positions that count. Replacements whose parts emit no
stages are judged part by part instead: each is called with the arguments that the original's part was given.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reports.record import Stage, first_departing

from ..case import Case, Example, Inputs
from ..exact import exact_mode
from ..numerics import EXACT_TOLERANCE, gap
from ..trial import Replacer, Trial, sequence_first
from .stages import Heard, fused_layers, listening, main_tensor, nothing_heard, recorded

MOST_STAGES = 40
"""Stages of one layer that a failure keeps."""
NEARBY = 4
"""Stages kept before and after one that departs outside all layers."""
Drive = Callable[[nn.Module, Inputs], Any]


def localise(case: Case, example: Example, replacer: Replacer) -> tuple[Stage, ...]:
    """Stages of the layer in which the replacement of ``example``'s model first departs, in order; none where no stage
    departs in an ordinary call nor, where there is a cache, in a prompt followed by a step.

    ``first_departing`` finds the one that matters.
    """
    with case.surroundings(), exact_mode():
        for drive in _drives(case, example):
            trial = Trial(case, example, replacer)
            model = trial.replaced.model
            judge = _by_emission if fused_layers(model) else _part_by_part
            stages = judge(trial, model, drive)
            if first_departing(stages) is not None:
                return _around(stages, fused_layers(model))
    return ()


def _drives(case: Case, example: Example) -> Iterator[Drive]:
    yield case.run
    if case.speaks_transformers and case.caches(example):
        yield _prompt_and_step


def _prompt_and_step(model: nn.Module, inputs: Inputs) -> None:
    """All but the last token, then the last, through the model's own cache."""
    given = {name: value for name, value in inputs.kwargs.items() if name not in ("attention_mask", "position_ids")}
    tokens = given.pop("input_ids")
    given["use_cache"] = True
    first = model(input_ids=tokens[:, :-1], **given) if tokens.shape[1] > 1 else None
    cache = None if first is None else first.past_key_values
    model(input_ids=tokens[:, -1:], past_key_values=cache, **given)


def _by_emission(trial: Trial, model: nn.Module, drive: Drive) -> tuple[Stage, ...]:
    expected = nothing_heard()
    with listening(trial.original, recorded(expected)):
        drive(trial.original, trial.fresh_inputs())
    compare = _Comparison(expected, trial.inputs.valid, sequence_first=sequence_first(model))
    ordinary = compare.run(model, drive, trial.fresh_inputs(), correct=False)
    corrected = compare.run(model, drive, trial.fresh_inputs(), correct=True)
    return tuple(
        Stage(
            name=name or "the whole model",
            own_error=own,
            inherited_error=max(ordinary.get((name, turn), own) - own, 0.0),
        )
        for (name, turn), own in corrected.items()
    )


@dataclass
class _Comparison:
    """Compares a replaced model's stages with ``expected``. A stage's key is its name and the number of its pass."""

    expected: Heard
    valid: Tensor | None
    sequence_first: bool

    def run(self, model: nn.Module, drive: Drive, inputs: Inputs, *, correct: bool) -> dict[tuple[str, int], float]:
        """Errors by stage, in order. With ``correct``, each stage is overwritten with what was expected. A run that
        breaks ends in a stage with an infinite error."""
        errors: dict[tuple[str, int], float] = {}
        passes: Counter[str] = Counter()

        def hear(name: str, actual: Tensor) -> None:
            turn = passes[name]
            passes[name] += 1
            expected = self._expected(name, turn, actual)
            if expected is None:
                return
            errors[name, turn] = gap(expected, actual, self._valid(expected)).error
            if correct and expected.shape == actual.shape:
                actual.copy_(expected)

        with listening(model, hear):
            try:
                drive(model, inputs)
            except Exception:
                last = next(reversed(errors), ("the beginning", 0))[0]
                errors[f"after {last}", 0] = float("inf")
        return errors

    def _expected(self, name: str, turn: int, actual: Tensor) -> Tensor | None:
        """What the original had there. Its passes are joined where it goes through a stage piece by piece (chunked
        MLPs), and its shape is brought to the replacement's where both hold the same elements in the same order."""
        passes = self.expected.get(name, [])
        if not passes:
            return None
        whole = passes[turn] if turn < len(passes) else passes[-1]
        if whole.shape != actual.shape and whole.dim() == 3 and len(passes) > 1:
            whole = torch.cat(passes, dim=1)
        if self.sequence_first and whole.dim() == 3 and whole.transpose(0, 1).shape == actual.shape:
            whole = whole.transpose(0, 1)
        return whole.reshape(actual.shape) if whole.numel() == actual.numel() else whole

    def _valid(self, tensor: Tensor) -> Tensor | None:
        fits = self.valid is not None and tensor.dim() > 2 and tensor.shape[:2] == self.valid.shape
        return self.valid if fits else None


def _part_by_part(trial: Trial, model: nn.Module, drive: Drive) -> tuple[Stage, ...]:
    """Each part whose class differs, innermost first, called with a copy of what the original's part was given."""
    original = trial.original
    theirs = dict(model.named_modules())
    paths = [path for path, part in original.named_modules() if type(theirs.get(path)) is not type(part)]
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any], Tensor]] = []
    given: dict[str, Any] = {}

    def before(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            given[path] = copy.deepcopy((args, kwargs))

        return hook

    def after(path: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            tensor = main_tensor(output)
            if tensor is not None:
                calls.append((path, *given.pop(path), tensor.clone()))

        return hook

    parts = [(path, original.get_submodule(path)) for path in paths]
    with contextlib.ExitStack() as hooks:
        for path, part in parts:
            hooks.enter_context(part.register_forward_pre_hook(before(path), with_kwargs=True))
            hooks.enter_context(part.register_forward_hook(after(path)))
        drive(original, trial.fresh_inputs())
    return tuple(_own_error(path, theirs[path], args, kwargs, output) for path, args, kwargs, output in calls)


def _own_error(path: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Tensor) -> Stage:
    try:
        actual = main_tensor(part(*args, **kwargs))
    except Exception:
        error = float("inf")
    else:
        error = gap(expected, actual).error
    return Stage(name=path or "the whole model", own_error=error, inherited_error=0.0)


def _around(stages: tuple[Stage, ...], layers: Iterable[str]) -> tuple[Stage, ...]:
    """The stages of the layer in which the first departing one lies; or else some before and after it."""
    first = next(i for i, stage in enumerate(stages) if stage.own_error > EXACT_TOLERANCE)
    layer = next((path for path in layers if _in(path, stages[first])), None)
    if layer is not None:
        stages = tuple(stage for stage in stages if _in(layer, stage))
        return stages[:MOST_STAGES]
    return stages[max(0, first - NEARBY) : first + NEARBY + 1]


def _in(layer: str, stage: Stage) -> bool:
    """Whether ``stage`` is of the layer at this path; ``h.1`` has none of ``h.10``."""
    name = stage.name.removeprefix("after ")
    return not layer or name == layer or name.startswith(f"{layer}.")
