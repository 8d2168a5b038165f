"""Same rounding: in each dtype the replacement stays within its error budget, however it is called.

Kernels are written for the dtypes that people run, and float64, in which the other properties look, is seldom one of them. So
what may go wrong from one call to the next, and not in a single one, is asked here too.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Case, Inputs
from ..exact import exact_mode
from ..rounding.calibration import multiple
from ..rounding.statistic import DTYPES, Allowance, Measured, Run, allowances, other_numbers, pooled
from ..trial import Disagreement, OriginalFailed, Trial, cast, fused_path
from .base import Property, identical
from .cache import OUTPUT, cuts, in_chunks, own_cache, with_cache
from .cache_edits import beams, continued
from .calls import extremes, layer_inputs_watched
from .hidden import LAYOUTS, given, with_outlier
from .inputs import mapped, other_inputs
from .sizes import decoded, large_trials, long_trial, size_of
from .threads import another_threads, interrupted, layers_of
from .transforms import tangents
from .weights import CHANGES, change_weights

INFERENCE = 16
"""Bit of an example's seed; those below it choose other things."""
IMAGE = 4
"""Dimensions of a batch of images."""
ATTENUATION = 1 / 16
"""A power of two: no bit of a weight is lost."""
Judged = dict[str, tuple[Allowance, Measured]]
"""What was allowed and what was measured of each output; nothing where the original's own result is not finite."""
Way = Callable[[Trial, str], Judged]
"""A way to call the models of a trial in a dtype."""


def _within_budget(dtype: str) -> Callable[[Trial], None]:
    def check(trial: Trial) -> None:
        most = multiple(dtype)
        ways = _ways(trial.case, dtype)
        way = random.Random(f"{dtype} {trial.example.seed}").choice(ways)  # the same while an example is made simple
        used = [0.0]
        judged = way(trial, dtype)
        for name, (allowance, measured) in judged.items():
            ratio = measured.ratio
            if not ratio <= most:
                again = [way(trial.on(other), dtype) for other in other_numbers(trial.example)]
                every = [one[name][1] for one in again if name in one]
                ratio = pooled(every).ratio if every else 0.0
            used.append(ratio / most)
            if not ratio <= most:
                raise Disagreement(_excess(name, allowance, measured, ratio / most), error=measured.error)
        trial.evidence.budgets_used += [max(used)] if judged else []

    return check


def _ways(case: Case, dtype: str) -> tuple[Way, ...]:
    ways: tuple[Way, ...] = (_once, _again_and_again, _with_other_weights, _of_a_large_layer, _beside_another_thread)
    if case.layered:
        ways = (*ways, _of_many_tokens)
    if case.cached:
        ways = (*ways, _with_a_cache)
    if dtype == "float16":  # the others have float32's range
        ways = (*ways, _with_outliers)
    return (*ways, _under_autocast, _in_forward_mode) if dtype == "float32" else ways


def _once(trial: Trial, dtype: str) -> Judged:
    """A call, of which no layer writes to what it is given; and one whose first layer, where it is not the whole model, is
    given it in another layout."""
    trial.original.to(DTYPES[dtype])
    with layer_inputs_watched(trial):
        judged = _judged(trial, dtype, trial.case.run, trial.fresh_inputs())
    if not trial.case.layered:  # how an image lies in memory is an axis
        return judged
    words, layout = list(LAYOUTS.items())[trial.example.seed // 32 % len(LAYOUTS)]
    with contextlib.suppress(OriginalFailed):  # not every original takes other strides
        judged |= _named(_judged(trial, dtype, _giving(trial, layout), trial.fresh_inputs()), f"of hidden states {words}")
    return judged


def _again_and_again(trial: Trial, dtype: str) -> Judged:
    """A call, the largest one, the smallest, and the first again, which has to be bit for bit the same."""
    run = trial.case.run
    judged = _judged(trial, dtype, run, trial.fresh_inputs())
    if not judged:
        return {}
    first = _outputs(trial, dtype, run, trial.fresh_inputs())
    largest, smallest = extremes(trial)
    for what, inputs in (
        ("a larger call after another", other_inputs(trial, 1, **largest)),
        ("a smaller call after a larger", other_inputs(trial, 2, **smallest)),
    ):
        judged |= _named(_judged(trial, dtype, run, inputs), f"of {what}")
    identical(first, _outputs(trial, dtype, run, trial.fresh_inputs()), f"the first call again, after other shapes, in {dtype}")
    return judged


def _with_other_weights(trial: Trial, dtype: str) -> Judged:
    """A call, and one each time the layers' weights have been changed in another way."""
    run = trial.case.run
    judged = _judged(trial, dtype, run, trial.fresh_inputs())
    for how in CHANGES if judged else ():
        for one in trial.replaced.replaced:
            mine, its = (model.get_submodule(one.path) for model in (trial.original, trial.replaced.model))
            change_weights(mine, its, how)
        judged |= _named(_judged(trial, dtype, run, trial.fresh_inputs()), f"with weights {how}")
    return judged


def _of_many_tokens(trial: Trial, dtype: str) -> Judged:
    """A long sequence, its last tokens one by one where there is a cache."""
    trial = long_trial(trial)
    return _decoded(trial, dtype, f"of {trial.example['tokens']} tokens")


def _of_a_large_layer(trial: Trial, dtype: str) -> Judged:
    """Two layers, or a model, as wide as published ones, their last tokens one by one where there is a cache."""
    trials = large_trials(trial) if trial.case.layered else large_trials(trial)[:1]
    judged = [_decoded(one, dtype, f"with {size_of(one)}") for one in trials]
    return functools.reduce(operator.or_, judged)


def _decoded(trial: Trial, dtype: str, what: str) -> Judged:
    run, inputs = trial.case.run, trial.fresh_inputs()
    if trial.case.caches(trial.example):
        run, inputs = decoded, with_cache(inputs)
    return _named(_judged(trial, dtype, run, inputs), what)


def _with_a_cache(trial: Trial, dtype: str) -> Judged:
    """Two prompts, each in several calls with a cache of its own and two steps more."""
    trial = trial.suited(trial.case.caches)
    run = functools.partial(_in_calls, seed=trial.example.seed)
    judged = _named(_judged(trial, dtype, run, _with_two_steps(trial.fresh_inputs())), "of several calls with a cache")
    if judged:
        judged |= _named(_judged(trial, dtype, run, _with_two_steps(other_inputs(trial, 1))), "of another prompt after it")
    return judged


def _beside_another_thread(trial: Trial, dtype: str) -> Judged:
    """A call in the midst of which another thread makes one."""
    others = another_threads(trial, random.Random(trial.example.seed))

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own = next(model.parameters()).dtype
        exact = own is torch.float64

        def second() -> dict[str, Tensor]:
            with exact_mode() if exact else torch.no_grad():
                return trial.case.run(model, Inputs(kwargs=cast(others.kwargs, own), valid=others.valid))

        chosen = random.Random(trial.example.seed)
        return interrupted(layers_of(trial, model), lambda: trial.case.run(model, inputs), second, chosen)[0]

    return _named(_judged(trial, dtype, run, trial.fresh_inputs()), "beside another thread")


def _with_outliers(trial: Trial, dtype: str) -> Judged:
    """A call in which the first layer is given hidden states with an outlier; or the model, images with one."""
    inputs = trial.fresh_inputs()
    if trial.case.layered:
        trial.original.to(DTYPES[dtype])
        _attenuate(trial)
        judged = _judged(trial, dtype, _giving(trial, with_outlier), inputs)
    else:
        kwargs = mapped(inputs.kwargs, lambda one: with_outlier(one) if one.dim() == IMAGE else one)
        judged = _judged(trial, dtype, trial.case.run, Inputs(kwargs=kwargs, valid=inputs.valid))
    return _named(judged, "with an outlier")


def _attenuate(trial: Trial) -> None:
    """Smaller weights for the first layer, alike on both sides. Where no norm comes before attention, an outlier is multiplied
    by an outlier, which half precision need not hold."""
    path = trial.replaced.replaced[0].path
    with torch.no_grad():
        for model in (trial.original, trial.replaced.model):
            for parameter in model.get_submodule(path).parameters():
                if parameter.dim() > 1:
                    parameter.mul_(ATTENUATION)


def _under_autocast(trial: Trial, dtype: str) -> Judged:
    """A call under autocast to bfloat16. A replacement may leave it to the original."""

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return trial.case.run(model, inputs)

    return _named(_judged(trial, dtype, run, trial.fresh_inputs(), fused=False), "under autocast")


def _in_forward_mode(trial: Trial, dtype: str) -> Judged:
    """A call that carries derivatives along, where the original can; else any call."""
    derived = tangents(trial.case.run)

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return derived(copy.deepcopy(model), inputs)  # some keep tensors that are of no use afterwards

    try:
        return _named(_judged(trial, dtype, run, trial.fresh_inputs(), fused=False), "in forward mode")
    except OriginalFailed:
        return _once(trial, dtype)


def _giving(trial: Trial, change: Callable[[Tensor], Tensor]) -> Run:
    """A run whose first replaced layer is given ``change`` of its hidden states."""
    path = trial.replaced.replaced[0].path

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        with given(model, path, change):
            return trial.case.run(model, inputs)

    return run


def _named(judged: Judged, what: str) -> Judged:
    return {f"{name} {what}": one for name, one in judged.items()}


def _with_two_steps(inputs: Inputs) -> Inputs:
    """The call of ``inputs`` with a cache; the positions of two tokens more count, where any are left out."""
    call = with_cache(inputs)
    if call.valid is None:
        return call
    return Inputs(kwargs=call.kwargs, valid=torch.cat((call.valid, torch.ones_like(call.valid[:, :2])), dim=1))


def _in_calls(model: nn.Module, inputs: Inputs, *, seed: int) -> dict[str, Tensor]:
    """Outputs (B, T + 2, D), those of the last two tokens after the rows of the cache have changed places. Of a single token
    one more is there."""
    kwargs = inputs.kwargs
    batch, tokens = kwargs["input_ids"].shape
    outputs, cache = in_chunks(model, kwargs, cuts(tokens, seed), own_cache(model) if seed & 1 else None)
    steps = continued(model, kwargs, cache, "reorder", beams("reorder", batch, seed))
    return {OUTPUT: torch.cat((outputs, steps), dim=1)}


def _judged(trial: Trial, dtype: str, run: Run, inputs: Inputs, *, fused: bool = True) -> Judged:
    allowed = allowances(run, trial.original.to(DTYPES[dtype]), _in(dtype, inputs), trial.example)
    if not allowed:
        return {}
    outputs = _outputs(trial, dtype, run, inputs, fused=fused)
    for name, allowance in allowed.items():
        actual = outputs[name]
        if actual.dtype is not allowance.dtype or actual.shape != allowance.exact.shape:
            raise Disagreement(
                f"{name} is {actual.dtype} of shape {tuple(actual.shape)}, the original's {allowance.dtype} of shape "
                f"{tuple(allowance.exact.shape)}"
            )
    return {name: (allowance, allowance.measure(outputs[name])) for name, allowance in allowed.items()}


def _outputs(trial: Trial, dtype: str, run: Run, inputs: Inputs, *, fused: bool = True) -> dict[str, Tensor]:
    """Those of the replaced model, of every second example in inference mode, as people run it. The original is in ``dtype``
    before a copy of it is replaced."""
    trial.original.to(DTYPES[dtype])
    model = trial.replaced.model
    mode = torch.inference_mode if trial.example.seed & INFERENCE else torch.no_grad
    with fused_path(model) if fused else contextlib.nullcontext(), mode():
        return run(model, _in(dtype, inputs))


def _in(dtype: str, inputs: Inputs) -> Inputs:
    kwargs: dict[str, Any] = cast(inputs.kwargs, DTYPES[dtype])
    return Inputs(kwargs=kwargs, valid=inputs.valid)


def _excess(name: str, allowance: Allowance, measured: Measured, used: float) -> str:
    own = f"the original's own is {allowance.own:.1e}, rounding its parameters {allowance.propagated:.1e}"
    return f"{name}: error {measured.error:.1e} of its scale ({own}); with other numbers too, {used:.2g} times the budget"


_BESIDES = {"float32": ", under autocast, in forward mode", "float16": ", with outliers"}
ROUNDING = tuple(
    Property(
        name=f"rounding {dtype}",
        statement=f"In {dtype}, at every size, in every layout, after other calls and beside one, with a cache, with other "
        f"weights{_BESIDES.get(dtype, '')}, the error against the exact result stays within a calibrated multiple of what the "
        "original's own rounding and one rounding of its parameters cause.",
        check=_within_budget(dtype),
        exact=False,
        share=0.25,
        least=14,
    )
    for dtype in DTYPES
)
