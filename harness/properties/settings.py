"""What is set on a module inside a layer or in its configuration: a number, a flag, a function, another class, training mode
for it alone; and what is put there: a bias, a parametrization, an adapter around it, another implementation of attention.

A replacement reads such things when it is made. Set later, each has to have the effect that it has in the original (a norm's
epsilon, a scale, the dropout that is left on to sample from a model), and none any more once it is taken back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..numerics import alive
from ..trial import Trial, Vacuous, fused_path, original_side, replacement_side
from .base import Property, living, relation_holds, same_outputs
from .cache import with_cache
from .inputs import other_tokens, tokens_of
from .set_later import (
    Change,
    Kind,
    a_parametrization,
    a_pruned_weight,
    a_wrapper,
    an_adapter,
    another_class,
    circular_padding,
    flipped_flags,
    free_u,
    new_bias,
    other_configuration,
    other_counts,
    other_functions,
    other_implementation,
    own_method,
    scaled_numbers,
    training_mode,
)
from .sizes import decoded, prompted

STEPWISE, PROMPTED = 64, 128
"""Bits of an example's seed."""
TRIES = 4
"""Changes of a kind that are tried until one makes a difference."""


@dataclass(frozen=True)
class Later:
    """What is set on the module at ``path``, in words, and how."""

    path: str
    what: str
    change: Change
    must_matter: bool
    """Whether it is asked about only where it makes a difference to the original."""


def _settings(trial: Trial) -> None:
    trial = prompted(trial) if trial.example.seed & PROMPTED else trial
    model = trial.replaced.model
    trial.run_replaced(model, trial.fresh_inputs())
    with original_side():
        plain = living(_outputs(trial, trial.original), trial.inputs.valid)
    hidden = _hides_masked_tokens(trial, plain)
    judged = (_to_be_judged(trial, proposed, plain, hidden=hidden) for proposed in _proposed(trial))
    found = [one for one in judged if one is not None]
    if not found:
        raise Vacuous("the original runs with nothing that was set on its modules")
    for later, expected in found:
        _same_with(trial, model, later, expected, plain)


def _to_be_judged(
    trial: Trial, proposed: Iterable[Later], plain: dict[str, Tensor], *, hidden: bool
) -> tuple[Later, dict[str, Tensor]] | None:
    """The first change that makes a difference to the original, which gives ``plain`` without it, and what it gives then; or the
    first with which it runs. Masked tokens that are ``hidden`` have to stay so (attention may take its mask from elsewhere): a
    replacement may have computed anything for them by then."""
    runs = None
    for later in proposed:
        try:
            undo = later.change(trial.original.get_submodule(later.path))
        except Exception:  # not every attention has another implementation, not every weight a parametrization
            continue
        expected = _outputs_of_original(trial)
        if expected is not None and hidden and not _hides_masked_tokens(trial, expected):
            expected = None
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


def _hides_masked_tokens(trial: Trial, expected: dict[str, Tensor]) -> bool:
    """Whether the original, as it is now, gives what is ``expected`` whatever tokens are masked."""
    inputs = trial.fresh_inputs()
    if inputs.valid is None or bool(inputs.valid.all()) or tokens_of(inputs) is None:
        return True
    others = _outputs_of_original(trial, other_tokens(trial, inputs, ~inputs.valid))
    return others is not None and all(relation_holds(expected[name], others[name], inputs.valid) for name in expected)


def _outputs(trial: Trial, model: nn.Module, inputs: Inputs | None = None) -> dict[str, Tensor]:
    """Outputs from one state of the random generator, of one call or, where there is a cache, as often of a prompt and steps."""
    inputs = trial.fresh_inputs() if inputs is None else inputs
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(trial.example.seed)
        if trial.case.caches(trial.example) and trial.example.seed & STEPWISE:
            return decoded(model, with_cache(inputs))
        return trial.case.run(model, inputs)


def _outputs_of_original(trial: Trial, inputs: Inputs | None = None) -> dict[str, Tensor] | None:
    """None where the original cannot run with what was set, or gives nothing to compare with."""
    try:
        outputs = _outputs(trial, trial.original, inputs)
    except Exception:  # whatever is raised says so: Megatron's, where a library that it can do without is missing, a NameError
        return None
    return outputs if alive(outputs, trial.inputs.valid) is None else None


def _equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def _proposed(trial: Trial) -> Iterator[list[Later]]:
    """Changes of one kind after another; of the configuration or mode of layers one. The parts of a whole model are not asked
    about their mode: they drop by themselves, other elements where an image lies otherwise in memory."""
    chosen = random.Random(trial.example.seed)
    kinds: tuple[Kind, ...] = scaled_numbers, other_counts, flipped_flags, another_class
    if trial.case.layered:
        kinds = *kinds, chosen.choice((other_configuration, training_mode, own_method))
    else:
        kinds = other_configuration, *kinds, circular_padding, free_u
    put_there = chosen.choice((other_implementation, new_bias, an_adapter, a_wrapper, a_parametrization, a_pruned_weight))
    for kind in (*kinds, other_functions, put_there):
        yield _of_kind(kind, trial)


def _of_kind(kind: Kind, trial: Trial) -> list[Later]:
    """Some changes of a kind to one of the layers, in any order: each of another class of parts or in another way, because most
    of a model's parts are of few classes."""
    chosen = random.Random(trial.example.seed)
    layer = "" if kind is other_implementation else chosen.choice(trial.replaced.replaced).path
    parts = [(f"{layer}.{name}".strip("."), part) for name, part in trial.original.get_submodule(layer).named_modules()]
    chosen.shuffle(parts)
    proposed = [
        (type(part), path, *one) for path, part in parts if path != layer or kind is not another_class for one in kind(part)
    ]
    found = [*{(cls, what): (path, what, change) for cls, path, what, change in proposed}.values()]
    whole = kind in (other_configuration, own_method)
    if whole:  # most of which has no part in a call, and what parts share is set once: all of it is proposed
        found = [*{what: (path, what, change) for path, what, change in found}.values()]
    some = chosen.sample(found, len(found) if whole else min(len(found), TRIES))
    return [Later(path, f"{what} of {path or 'the model'}", change, must_matter=whole) for path, what, change in some]


SETTINGS = Property(
    name="settings",
    statement="A number, a flag, a function, another class or training mode, a bias, a parametrization, a pruned weight, an "
    "adapter, another module around a part or the attention's implementation, set on a module inside a layer (or in its "
    "configuration) after the replacement, has the effect that it has in the original, and none once it is taken back.",
    check=_settings,
    share=0.2,  # each example asks about one thing of each kind, and layers have many
    least=6,
)
