"""The ways in which a model is called when its rounding is judged.

Kernels are written for the dtypes that people run, and float64, in which most properties look, is seldom one of them. So what
may go wrong from one call to the next, and not in a single one, is asked here too.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import operator
import random
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..case import Case, Inputs
from ..covering import chosen_by
from ..exact import exact_mode
from ..nested import cast, mapped
from ..rounding.statistic import DTYPES, Run
from ..trial import OriginalFailed, Trial
from .base import identical
from .cache import OUTPUT, cuts, in_chunks, own_cache, with_cache
from .cache_edits import beams, continued
from .calls import extremes, layer_inputs_watched
from .compiled import WAYS
from .hidden import IMAGE, LAYOUTS, far_from_zero, given, with_outlier
from .inputs import other_inputs
from .judged import Judged, judged, outputs_in
from .lengths import FAR_BEHIND, behind, far_inputs, far_trial
from .sizes import by_several_threads, decoded, has_lengths, large_trials, largest_trials, long_trial, size_of
from .threads import STOPS, another_threads, interrupted, layers_of
from .transforms import tangents
from .weights import CHANGES, change_weights

ATTENUATION, AMPLIFICATION = 1 / 16, 16
"""Powers of two: no bit of a weight is lost."""
_ANY, _OF_SCORES = re.compile(""), re.compile(r"(q|k|qkv|query|key|c_attn|query_key_value)(_proj)?\.weight")
"""Names of weights: all, and those that queries and keys are made by, in the libraries that cases are of."""
AUTOCAST_FLOAT16 = 64
"""Bit of an example's seed."""
Way = Callable[[Trial, str], Judged]
"""A way to call the models of a trial in a dtype."""


def ways(case: Case, dtype: str) -> tuple[Way, ...]:
    """Those that ``case`` can be called in."""
    every: tuple[Way, ...] = (once, again_and_again, with_other_weights, of_a_large_layer, beside_another_thread)
    if has_lengths(case):
        every = (*every, of_many_tokens)
    if case.cached:
        every = (*every, with_a_cache)
    if dtype == "float16":  # the others have float32's range; nothing else shows what an outlier does
        every = (*every, with_outliers, with_outliers)
        if case.cached:  # and nothing else has sums that stand still after two thousand terms, where bfloat16's do after 256
            every = (*every, behind_many_tokens)
    if dtype == "bfloat16" and case.layered:  # of those that people compile models in
        every = (*every, when_compiled)
    return (*every, under_autocast, in_forward_mode) if dtype == "float32" else every


def once(trial: Trial, dtype: str) -> Judged:
    """A call, of which no layer writes to what it is given; one whose first layer is given it in another layout, or a model that
    is replaced as a whole in each; one with large weights; and in float32 one whose first layer is given it far from zero."""
    trial.original.to(DTYPES[dtype])
    with layer_inputs_watched(trial):
        found = judged(trial, dtype, trial.case.run, trial.fresh_inputs())
    if not trial.case.layered:
        for words, layout in LAYOUTS.items():
            found |= _named(judged(trial, dtype, _laid_out(trial, layout), trial.fresh_inputs()), f"of tensors {words}")
        return found
    words, layout = list(LAYOUTS.items())[trial.example.seed // 32 % len(LAYOUTS)]
    try:
        found |= _named(judged(trial, dtype, _giving(trial, layout), trial.fresh_inputs()), f"of hidden states {words}")
    except OriginalFailed as failure:  # not every original takes other strides
        trial.evidence.leave_out(f"hidden states {words}", failure)
    if dtype == "float32":  # beside what the others lose there, nothing shows
        moved = judged(trial, dtype, _giving(trial, far_from_zero), trial.fresh_inputs())
        found |= _named(moved, "of hidden states far from zero")
    return found | _with_large_weights(trial, dtype)


def again_and_again(trial: Trial, dtype: str) -> Judged:
    """A call, the largest one, the smallest, and the first again, which has to be bit for bit the same."""
    run = trial.case.run
    found = judged(trial, dtype, run, trial.fresh_inputs())
    if not found:
        return {}
    first = outputs_in(trial, dtype, run, trial.fresh_inputs())
    largest, smallest = extremes(trial)
    for what, inputs in (
        ("a larger call after another", other_inputs(trial, 1, **largest)),
        ("a smaller call after a larger", other_inputs(trial, 2, **smallest)),
    ):
        found |= _named(judged(trial, dtype, run, inputs), f"of {what}")
    identical(first, outputs_in(trial, dtype, run, trial.fresh_inputs()), f"the first call again, after other shapes, in {dtype}")
    return found


def with_other_weights(trial: Trial, dtype: str) -> Judged:
    """A call, and one each time the layers' weights have been changed in another way."""
    run = trial.case.run
    found = judged(trial, dtype, run, trial.fresh_inputs())
    for how in CHANGES if found else ():
        _change_layers(trial, how)
        found |= _named(judged(trial, dtype, run, trial.fresh_inputs()), f"with weights {how}")
    return found


def _change_layers(trial: Trial, how: str) -> None:
    for one in trial.replaced.replaced:
        mine, its = (model.get_submodule(one.path) for model in (trial.original, trial.replaced.model))
        change_weights(mine, its, how)


def of_many_tokens(trial: Trial, dtype: str) -> Judged:
    """A long sequence, its last tokens one by one where there is a cache, by kernels of several threads."""
    trial = long_trial(trial)
    with by_several_threads():
        return _decoded(trial, dtype, f"of {trial.example['tokens']} tokens")


def of_a_large_layer(trial: Trial, dtype: str) -> Judged:
    """Two layers, or a model, as wide as published ones, and a layer that is so large in one respect as the largest, their
    last tokens one by one where there is a cache."""
    trials = large_trials(trial)
    if not trial.case.layered:
        trials = (trials[0].vary(batch=1),)  # what a model computes in half precision on a CPU takes long
    found = [_decoded(one, dtype, f"with {size_of(one)}") for one in trials]
    if trial.case.layered:
        largest = itertools.islice(largest_trials(trial), 1)
        found += [_decoded(one, dtype, f"with {axis.name}={one.example[axis.name]}") for axis, one in largest]
    return functools.reduce(operator.or_, found)


def _decoded(trial: Trial, dtype: str, what: str) -> Judged:
    run, inputs = trial.case.run, trial.fresh_inputs()
    if trial.case.caches(trial.example):
        run, inputs = decoded, with_cache(inputs)
    return _named(judged(trial, dtype, run, inputs), what)


def with_a_cache(trial: Trial, dtype: str) -> Judged:
    """Two prompts, each in several calls with a cache of its own and two steps more."""
    trial = trial.suited(trial.case.caches)
    run = functools.partial(_in_calls, seed=trial.example.seed)
    found = _named(judged(trial, dtype, run, _with_two_steps(trial.fresh_inputs())), "of several calls with a cache")
    if found:
        found |= _named(judged(trial, dtype, run, _with_two_steps(other_inputs(trial, 1))), "of another prompt after it")
    return found


def behind_many_tokens(trial: Trial, dtype: str) -> Judged:
    """Tokens behind thousands in a cache."""
    trial = far_trial(trial)
    run = functools.partial(behind, seed=trial.example.seed)
    return _named(judged(trial, dtype, run, far_inputs(trial)), f"of {FAR_BEHIND}")


def beside_another_thread(trial: Trial, dtype: str) -> Judged:
    """Calls in the midst of which another thread makes one."""
    others = another_threads(trial, random.Random(trial.example.seed))

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        own = next(model.parameters()).dtype
        chosen, layers = random.Random(trial.example.seed), layers_of(trial, model)
        mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

        def second() -> dict[str, Tensor]:
            with exact_mode() if own is torch.float64 else mode():
                return trial.case.run(model, cast(others, own))

        calls = [interrupted(layers, lambda: trial.case.run(model, inputs), second, chosen)[0] for _ in range(STOPS)]
        return {f"{name} of call {number}": output for number, one in enumerate(calls, 1) for name, output in one.items()}

    return _named(judged(trial, dtype, run, trial.fresh_inputs()), "beside another thread")


def with_outliers(trial: Trial, dtype: str) -> Judged:
    """A call in which the first layer is given hidden states with an outlier; or the model, images with one. And one with scores
    that half precision holds once they are scaled, if at all."""
    inputs = trial.fresh_inputs()
    if trial.case.layered:
        trial.original.to(DTYPES[dtype])
        # Where no norm comes before attention, an outlier is multiplied by an outlier, which half precision need not hold.
        _scale_weights(trial, ATTENUATION)
        found = judged(trial, dtype, _giving(trial, with_outlier), inputs)
        _scale_weights(trial, 1 / ATTENUATION)
    else:
        images = mapped(inputs, lambda one: with_outlier(one) if one.dim() == IMAGE else one)
        found = judged(trial, dtype, trial.case.run, images)
    return _named(found, "with an outlier") | _lost_to_large_scores(trial, dtype)


def when_compiled(trial: Trial, dtype: str) -> Judged:
    """A call of which the first layer is compiled, traced and run without code generation. Calls of what is compiled are not
    counted."""
    trial.original.to(DTYPES[dtype])
    torch.compiler.reset()
    try:
        trial.replaced.model.get_submodule(trial.replaced.replaced[0].path).compile(**chosen_by(trial.example.seed, WAYS))
        return _named(judged(trial, dtype, trial.case.run, trial.fresh_inputs(), fused=False), "compiled")
    finally:
        torch.compiler.reset()


def _with_large_weights(trial: Trial, dtype: str) -> Judged:
    """A call whose scores, or activations as well, are hundreds of times the usual: beyond what an exponential can hold, and
    short of the 10,000 that Megatron masks by. What is not finite in the original is not asked about."""
    _scale_weights(trial, AMPLIFICATION, _ANY if trial.example.seed % 2 else _OF_SCORES)
    return _named(judged(trial, dtype, trial.case.run, trial.fresh_inputs()), "with large weights")


def _lost_to_large_scores(trial: Trial, dtype: str) -> Judged:
    """What is not finite in a call with scores a hundred thousand times the usual. Of anything else nothing is asked: between
    scores so large a rounding decides."""
    _scale_weights(trial, AMPLIFICATION**2, _OF_SCORES)
    found = judged(trial, dtype, trial.case.run, trial.fresh_inputs())
    lost = {name: one for name, one in found.items() if not math.isfinite(one[1].error)}
    return _named(lost, "with scores that overflow")


def _scale_weights(trial: Trial, factor: float, names: re.Pattern[str] = _ANY) -> None:
    """Larger or smaller weights for the first layer, those of modules with such ``names``, alike on both sides."""
    path = trial.replaced.replaced[0].path
    with torch.no_grad():
        for model in (trial.original, trial.replaced.model):
            for name, parameter in model.get_submodule(path).named_parameters():
                if parameter.dim() > 1 and names.search(name):
                    parameter.mul_(factor)


def under_autocast(trial: Trial, dtype: str) -> Judged:
    """A call under autocast to half precision of either kind, and again with other weights, by several with a cache where there
    is one. A replacement may leave it to the original. A plain call after it is bit for bit what it was before."""
    half = torch.float16 if trial.example.seed & AUTOCAST_FLOAT16 else torch.bfloat16

    def lower(run: Run) -> Run:
        def under(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
            with torch.autocast(trial.case.device, half):
                return run(model, inputs)

        return under

    run, inputs = lower(trial.case.run), trial.fresh_inputs()
    before = outputs_in(trial, dtype, trial.case.run, inputs)
    found = _named(judged(trial, dtype, run, inputs, fused=False), "under autocast")
    identical(before, outputs_in(trial, dtype, trial.case.run, inputs), "a call before one under autocast, and after it")
    if found:
        _change_layers(trial, next(iter(CHANGES)))
        if trial.case.caches(trial.example):
            run, inputs = lower(decoded), with_cache(inputs)
        found |= _named(judged(trial, dtype, run, inputs, fused=False), "under autocast, with other weights")
    return found


def in_forward_mode(trial: Trial, dtype: str) -> Judged:
    """A call that carries derivatives along, where the original can; else any call."""
    derived = tangents(trial.case.run)

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.no_grad():  # up to torch 2.11 inference mode loses what is carried along
            return derived(copy.deepcopy(model), inputs)  # some keep tensors that are of no use afterwards

    try:
        return _named(judged(trial, dtype, run, trial.fresh_inputs(), fused=False), "in forward mode")
    except OriginalFailed as failure:
        trial.evidence.leave_out("derivatives in forward mode", failure)
        return once(trial, dtype)


def _laid_out(trial: Trial, layout: Callable[[Tensor], Tensor]) -> Run:
    """A run of which every tensor lies in memory as ``layout`` lays it out."""

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return trial.case.run(model, mapped(inputs, layout))

    return run


def _giving(trial: Trial, change: Callable[[Tensor], Tensor]) -> Run:
    """A run whose first replaced layer is given ``change`` of its hidden states."""
    path = trial.replaced.replaced[0].path

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        with given(model, path, change):
            return trial.case.run(model, inputs)

    return run


def _named(found: Judged, what: str) -> Judged:
    return {f"{name} {what}": one for name, one in found.items()}


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
