"""What a property is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Case
from ..numerics import alive, gap, tolerance_of
from ..trial import Disagreement, Trial, Vacuous


def everywhere(case: Case) -> bool:
    return True


def layered(case: Case) -> bool:
    return case.layered


def cached(case: Case) -> bool:
    return case.cached


def transformers_like(case: Case) -> bool:
    return case.speaks_transformers


@dataclass(frozen=True, kw_only=True)
class Property:
    """``statement`` is what it claims, for the report. ``exact``: judged in float64 under exact mode.

    ``share`` of a profile's examples are spent on it, and ``least`` of them however dear the case: a single example says
    more of the draw than of the property. ``once``: it does not depend on the example and runs once.

    ``shown_by``: which field of ``Evidence`` may not be empty before it may be said to hold, and what is said where it is.
    ``lower``: the lower dtype whose error budget is judged.
    """

    name: str
    statement: str
    check: Callable[[Trial], None]
    applies: Callable[[Case], bool] = everywhere
    exact: bool = True
    share: float = 1.0
    least: int = 3
    once: bool = False
    shown_by: tuple[str, str] | None = None
    lower: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the models in its trials."""
        return torch.float64 if self.exact else torch.float32


def same_outputs(trial: Trial, expected: dict[str, Tensor], actual: dict[str, Tensor], valid: Tensor | None, what: str) -> None:
    """Raise unless every output agrees to the tolerance of its dtype at every position that counts."""
    living(expected, valid)
    if expected.keys() != actual.keys():
        raise Disagreement(f"{what}: expected outputs {sorted(expected)}, got {sorted(actual)}")
    for name in expected:
        same_tensor(trial, expected[name], actual[name], valid if expected[name].dim() > 1 else None, f"{what}: {name}")


def same_models(trial: Trial, original: nn.Module, replaced: nn.Module, what: str) -> None:
    """Raise unless ``replaced``, by its fused path, gives what ``original`` gives on the example's inputs."""
    expected = trial.case.run(original, trial.fresh_inputs())
    same_outputs(trial, expected, trial.run_replaced(replaced, trial.fresh_inputs()), trial.inputs.valid, what)


def same_tensor(trial: Trial, expected: Tensor, actual: object, valid: Tensor | None, what: str) -> None:
    """Raise unless ``actual`` agrees with ``expected`` to the tolerance of its dtype at every position that counts."""
    difference, tolerance = gap(expected, actual, valid), tolerance_of(expected)
    if not difference.within(tolerance):
        if not torch.isfinite(expected if valid is None else expected[valid]).all():
            raise Vacuous(f"{what}: the original's is not finite")
        message = difference.problem or f"relative error {difference.error:.1e} (tolerance {tolerance:.0e})"
        raise Disagreement(f"{what}: {message}", error=difference.error)
    trial.evidence.note(difference.error)


def same_form(expected: Any, actual: Any, what: str) -> None:
    """Raise unless both are of one type, and tuples and dicts of one length."""
    if type(actual) is not type(expected):
        raise Disagreement(f"{what} returns a {type(actual).__name__}, the original a {type(expected).__name__}")
    if isinstance(expected, tuple | dict) and len(expected) != len(actual):
        raise Disagreement(f"{what} returns {len(actual)} values, the original {len(expected)}")


def identical(expected: dict[str, Tensor], actual: dict[str, Tensor], what: str) -> None:
    """Raise unless every output is bit for bit the expected one."""
    if expected.keys() != actual.keys():
        raise Disagreement(f"{what}: expected outputs {sorted(expected)}, got {sorted(actual)}")
    for name, tensor in expected.items():
        if not torch.equal(tensor, actual[name]):
            raise Disagreement(f"{what}: {name} is not bit for bit the same", error=gap(tensor, actual[name]).error)


def living(outputs: dict[str, Tensor], valid: Tensor | None) -> dict[str, Tensor]:
    """``outputs`` of an original, which must be such that comparing with them shows something."""
    dead = alive(outputs, valid)
    if dead is not None:
        raise Vacuous(dead)
    return outputs


def lively(trial: Trial, model: nn.Module) -> dict[str, Tensor]:
    """Outputs of a replaced ``model``, which are as alive as its original's."""
    living(trial.expected_outputs, trial.inputs.valid)
    outputs = trial.run_replaced(model, trial.fresh_inputs())
    dead = alive(outputs, trial.inputs.valid, "replacement")
    if dead is not None:
        raise Disagreement(dead)
    return outputs


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, by name."""
    return {name: tensor.detach().clone() for name, tensor in held_tensors(model).items()}


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones under each of theirs."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def relation_holds(expected: Tensor, actual: Tensor, valid: Tensor | None = None) -> bool:
    """Whether the original itself satisfies a relation, so that it may be asked of the replacement."""
    return gap(expected, actual, valid).within(tolerance_of(expected))
