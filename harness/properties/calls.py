"""Call after call: nothing of one call may reach another, whatever was called before, between or beside it."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..case import Example, Inputs
from ..nested import mapped, tensors_in
from ..trial import Disagreement, Trial
from .base import Property, held_tensors, identical, living, same_outputs, snapshot
from .cache import in_chunks, with_cache
from .equality import Recorder, main_output
from .inputs import other_inputs

Outputs = dict[str, Tensor]
SEED = 90_210
"""Of generators: one that nobody else would choose."""


def _kept(outputs: Outputs) -> Outputs:
    return {name: output.clone() for name, output in outputs.items()}


def _finite(outputs: Outputs) -> Outputs:
    """At positions that do not count a layer may give what is no number, which equals nothing."""
    return {name: output.nan_to_num() for name, output in outputs.items()}


def _repeat(trial: Trial) -> None:
    """The call, two of its own form with other values, one of another form, one more of its own, and the call again; and once
    more with the same tensors, into which their owner has written those other values.

    Images come first in the format that replacements compute in: only there is there nothing to convert, so that a graph can
    take the tensors of its first call for its own. Then they come as they are.
    """
    if not trial.case.layered:
        _repeat_with(trial, _in_channels_last)
    _repeat_with(trial, lambda inputs: inputs)


def _repeat_with(trial: Trial, formed: Callable[[Inputs], Inputs]) -> None:
    model, given = trial.replaced.model, formed(trial.fresh_inputs())
    others = [formed(one) for one in (alike(trial, 1), alike(trial, 2), other_inputs(trial, 1), alike(trial, 3))]
    untouched = [(one, copy.deepcopy(one.kwargs)) for one in (given, *others)]
    layers = tuple(one.path for one in trial.replaced.replaced) if trial.case.layered else ()
    with Recorder(model, layers) as recorder:
        first = trial.run_replaced(model, given)
    same_outputs(trial, trial.run_original(given), first, given.valid, "the first call")
    seen = _kept(first)
    inside = {path: main_output(call.output) for path, call in recorder.calls.items()}
    seen_inside = _kept(inside)
    expected = [trial.run_original(inputs) for inputs in others]
    for inputs, outputs in zip(others, expected, strict=True):
        same_outputs(trial, outputs, trial.run_replaced(model, inputs), inputs.valid, "another call")
        identical(seen, first, "the first call's result after another call")
        identical(_finite(seen_inside), _finite(inside), "what layers gave in the first call, after another call")
    for inputs, before in untouched:
        _unchanged(before, inputs.kwargs, "input")
    for mode, words in ((contextlib.nullcontext(), "again"), (torch.inference_mode(), "in inference mode")):
        with mode:
            again = mapped(formed(trial.fresh_inputs()), torch.clone)  # nobody writes to rows that are there once for all
            identical(seen, trial.run_replaced(model, again), f"the same call {words}")
            written = _written(again, others[0])
            actual = trial.run_replaced(model, written)
        same_outputs(trial, expected[0], actual, written.valid, f"the same call {words}, and other values in its tensors")


def _written(inputs: Inputs, other: Inputs) -> Inputs:
    """The call of ``other`` with the tensors of ``inputs``, which are of its form."""
    own = tensors_in(inputs.kwargs)
    return Inputs(kwargs=mapped(other.kwargs, lambda values: next(own).copy_(values)), valid=other.valid)


def _in_channels_last(inputs: Inputs) -> Inputs:
    kwargs = {
        name: value.contiguous(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.dim() == 4 else value
        for name, value in inputs.kwargs.items()
    }
    return Inputs(kwargs=kwargs, valid=inputs.valid)


def alike(trial: Trial, salt: int) -> Inputs:
    """Other values in the form of the trial's inputs: all that a graph, or a cache by shape, would tell apart is equal."""
    return trial.inputs_of(Example(trial.example.values, trial.example.seed + salt))


def _shapes(trial: Trial) -> None:
    """A, then a larger call, the smallest one, one of any shape, and A again."""
    model = trial.replaced.model
    first = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, trial.expected_outputs, first, trial.inputs.valid, "the first call")
    largest, smallest = extremes(trial)
    for what, inputs in (
        ("after a smaller call", other_inputs(trial, 1, **largest)),
        ("after a larger call", other_inputs(trial, 2, **smallest)),
        ("after other calls", other_inputs(trial, 3)),
    ):
        expected = trial.run_original(inputs)
        same_outputs(trial, expected, trial.run_replaced(model, inputs), inputs.valid, what)
    identical(first, trial.run_replaced(model, trial.fresh_inputs()), "the first call again, after other shapes")


def extremes(trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the numeric input axes for the largest call and the smallest."""
    axes = [axis for axis in trial.case.axes if axis.name in trial.case.input_axes]
    numeric = {axis.name: [v for v in axis.values if type(v) is int] for axis in axes if type(axis.simplest) is int}
    plain = {axis.name: axis.simplest for axis in axes if axis.name not in numeric}
    return (
        {name: max(values) for name, values in numeric.items()},
        {name: min(values) for name, values in numeric.items()} | plain,
    )


def _size(trial: Trial) -> dict[str, Any]:
    """The trial's values of the numeric input axes: what is kept by shape of one call is there in the next of another form."""
    return {name: value for name in trial.case.input_axes if type(value := trial.example.values.get(name)) is int}


def _order(trial: Trial) -> None:
    first, second = trial.fresh_inputs(), other_inputs(trial, 1, **(_size(trial) if trial.example.seed % 3 else {}))
    expected = trial.expected_outputs
    with torch.inference_mode(mode=trial.example.seed % 2 == 1):  # in which who only serves makes the model, too
        one, other = (trial.replace(trial.copy()).model for _ in range(2))
        forward = [_kept(trial.run_replaced(one, inputs)) for inputs in (first, second)]
        backward = [_kept(trial.run_replaced(other, inputs)) for inputs in (second, first)]
    same_outputs(trial, expected, forward[0], trial.inputs.valid, "the first of two calls")
    identical(forward[0], backward[1], "a call that came first, and last")
    identical(forward[1], backward[0], "a call that came last, and first")


SMALLEST_ROUNDED_HEAD = 4
"""Elements of a head from which on a rounding stays small: a norm of two that are nearly equal gives them either sign."""


def _interleaved(trial: Trial) -> None:
    neighbour = trial.on(_another(trial))
    if trial.dtype is not torch.float64:
        neighbour = neighbour.at_least("head_size", SMALLEST_ROUNDED_HEAD)
    sides = [_Side(one) for one in (trial, neighbour)]
    for round_ in range(2):
        for side in sides:
            side.call(round_)


class _Side:
    """One of two models that are alive at once."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.inputs: list[Inputs] = [trial.inputs, other_inputs(trial, 1)]
        self.expected = [trial.run_original(inputs) for inputs in self.inputs]
        self.model: nn.Module = trial.replaced.model

    def call(self, which: int) -> None:
        inputs = self.inputs[which]
        actual = self.trial.run_replaced(self.model, inputs)
        same_outputs(self.trial, self.expected[which], actual, inputs.valid, "beside another replaced model")


def _another(trial: Trial) -> Example:
    """An example that has nothing to do with the trial's."""
    chosen = random.Random(trial.example.seed)
    values = {axis.name: chosen.choice(axis.values) for axis in trial.case.axes}
    return Example(values, chosen.randrange(2**16))


def _untouched(trial: Trial) -> None:
    inputs, model = trial.fresh_inputs(), trial.replaced.model
    before = copy.deepcopy(inputs.kwargs)
    state, untouched = snapshot(model), snapshot(trial.original)
    expected = _random_state_after(lambda: trial.run_original(trial.fresh_inputs()))
    if _random_state_after(lambda: trial.replace(trial.copy())) != _random_state_after(lambda: None):
        raise Disagreement("replacing a model draws random numbers, or seeds who draws them")
    kept = [name for name, tensor in held_tensors(trial.original).items() if torch.equal(tensor, untouched[name])]
    with torch.enable_grad(), layer_inputs_watched(trial):
        said: set[str] = set()
        call = functools.partial(_said, lambda: living(trial.run_replaced(model, inputs), inputs.valid))
        actual = _random_state_after(lambda: said.update(call()))
        if not torch.is_grad_enabled():
            raise Disagreement("a call turns gradients off for whoever comes next")
    if trial.case.caches(trial.example):
        steps = with_cache(trial.fresh_inputs())
        with torch.no_grad(), layer_inputs_watched(trial):
            in_chunks(model, steps.kwargs, [1] * trial.example["tokens"])
    if expected != actual:
        raise Disagreement("a call draws other random numbers than the original's")
    if said:
        _said_alike(trial, model, said)
    _unchanged(before, inputs.kwargs, "input")
    # An original may write to itself too: tables of rotary positions that depend on how many there are.
    _same_state(state, model, kept, "the replaced model's own state after a call")
    _same_state(untouched, trial.original, kept, "the original's state after a call of the replaced model")


def _same_state(before: dict[str, Tensor], model: nn.Module, names: list[str], what: str) -> None:
    after = held_tensors(model)
    identical({name: before[name] for name in names}, {name: after[name] for name in names}, what)


def _random_state_after(call: Callable[[], Any]) -> list[Any]:
    """Where ``call`` leaves the generators of torch, that of the CPU and those of GPUs in use, Python's, and numpy's, from a
    fixed start; the latter two then go on where they were."""
    torch.manual_seed(SEED)
    python, numpys = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        call()
        others = [random.getstate(), repr(np.random.get_state())]
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]
    return [*others, *(one.tolist() for one in states)]


def _said_alike(trial: Trial, model: nn.Module, said: set[str]) -> None:
    """Raise unless the original's call says what is ``said`` too, or another call of ``model`` does not: what is said once."""
    more = said - _said(lambda: trial.run_original(trial.fresh_inputs()))
    again = more and more & _said(lambda: trial.run_replaced(model, trial.fresh_inputs()))
    if again:
        raise Disagreement(f"each call prints or warns, and none of the original's does: {min(again)}")


def _said(call: Callable[[], Any]) -> set[str]:
    """What is printed in a call, line by line, and what it warns of."""
    printed = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        call()
    return {*filter(None, printed.getvalue().splitlines()), *(str(one.message) for one in warned)}


@contextlib.contextmanager
def layer_inputs_watched(trial: Trial) -> Iterator[None]:
    """Raise where a replaced layer writes to what it is given; most layers are given another layer's result."""
    given: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
        given[layer] = [(tensor, tensor.clone()) for tensor in tensors_in((args, kwargs))]

    def after(layer: nn.Module, *_: Any) -> None:
        # The tensors, not the containers: diffusers' own UNet takes residuals out of the list that it is given.
        if not all(torch.equal(tensor, before) for tensor, before in given[layer]):
            raise Disagreement(f"a {type(layer).__name__} writes to what it is given")

    with contextlib.ExitStack() as hooks:
        for layer in (trial.replaced.model.get_submodule(one.path) for one in trial.replaced.replaced):
            hooks.enter_context(layer.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(layer.register_forward_hook(after, with_kwargs=True))
        yield


def _unchanged(before: Any, after: Any, path: str) -> None:
    if isinstance(before, Tensor):
        identical({path: before}, {path: after}, "the caller's inputs after a call")
    elif isinstance(before, dict):
        for key, value in before.items():
            _unchanged(value, after[key], str(key))
    elif isinstance(before, tuple | list):
        for i, value in enumerate(before):
            _unchanged(value, after[i], f"{path}[{i}]")


REPEAT = Property(
    name="call twice",
    statement="The same call gives bit for bit the same, now, later and in inference mode; a kept result, of a layer too, stays; "
    "what is written into its tensors is read anew.",
    check=_repeat,
    share=0.05,
    least=10,  # graphs that keep memory they do not own show only in some forms of call
)

SHAPES = Property(
    name="changing shapes",
    statement="Batch and length may grow and shrink from call to call, down to one token.",
    check=_shapes,
    share=0.05,
)

ORDER = Property(
    name="call order",
    statement="Two calls, of one size or of two, give bit for bit the same in either order, also of a model made, replaced and "
    "called in inference mode.",
    check=_order,
    share=0.03,
)

INTERLEAVED = Property(
    name="two models",
    statement="Two replaced models of different sizes, alive at once and called in turn, do not reach into each other.",
    check=_interleaved,
    share=0.03,
)

UNTOUCHED = Property(
    name="hands off",
    statement="A call, or a step with a cache, writes neither to its inputs nor to a layer's; a call writes neither to the "
    "weights nor to the original, leaves gradients on, and neither draws random numbers nor prints or warns where the original "
    "does not; replacing draws none.",
    check=_untouched,
    exact=False,
    share=0.03,
)
