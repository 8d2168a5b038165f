"""Gradients through the replacement."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_full_backward_hook, register_module_full_backward_pre_hook
from torch.utils._pytree import keystr, tree_flatten_with_path

from ..case import Inputs
from ..exact import exact_mode
from ..nested import cast, mapped
from ..numerics import EXACT_TOLERANCE, tolerance_of
from ..rounding.statistic import CONFIRMATIONS, Run, rms
from ..trial import Disagreement, Trial, Vacuous, fused_path, original_side, replacement_side
from .base import Property
from .cache import OUTPUT, cuts, in_chunks, with_cache
from .calls import alike
from .equality import Recorded, main_output
from .hooks import scaled

OWN, ITS = 0.05, 0.3
"""Where an original's gradient in a lower dtype is within the one of the exact gradient's root mean square, a replacement's has
to be within the other. Of 60 examples of eight cases in bfloat16 that is asked of 56 % of the gradients (VAE) to 97 % (GPT-NeoX),
44,000 in all, and no honest one was beyond it."""
Gradients = dict[str, Tensor | None]


def _gradients(trial: Trial) -> None:
    """Gradients in eval mode, where the fused path runs, with some parameters frozen before or after replacing.

    In float32 it is seen which parameters have one, because that is where replacements use kernels that know none; what
    they are is compared in float64.
    """
    chosen = random.Random(trial.example.seed)
    by_cache = chosen.random() < 0.5
    model, original, (run, inputs, how) = trial.copy(), trial.original, _call(trial, by_cache=by_cache)
    # torch 2.13's own convolutions crash in backward where only some parameters of a model want gradients.
    share = chosen.choice((0.0, 0.5, 0.9)) if trial.case.layered else float(trial.example.seed & 1)
    frozen = [name for name, _ in original.named_parameters() if chosen.random() < share]
    if trial.case.layered and chosen.random() < 0.25:  # as who learns a prompt, or what stands before the layers
        inside = tuple(f"{one.path}." for one in trial.replaced.replaced)
        frozen = [name for name, _ in original.named_parameters() if name.startswith(inside)]
    early = chosen.random() < 0.5
    if early:
        _freeze(model, frozen)
    replaced = trial.replace(model).replaced
    with fused_path(model), torch.inference_mode(mode=chosen.random() < 0.5):
        run(model, inputs)  # what is derived at a first call has to be of use with gradients
    _freeze(model, frozen)
    _freeze(original, frozen)
    what = f"{how}with {len(frozen)} parameters frozen {'before' if early else 'after'} the replacement"
    _same_parameters(*_both(run, original, model, inputs), what)
    _under_autocast(trial, model, frozen, by_cache=by_cache, what=what)
    inputs = cast(inputs, torch.float64)
    with exact_mode():
        found = {what: _both(run, original.double(), model.double(), inputs)}
        other, others, words = _call(trial, by_cache=not by_cache)
        if words != how:  # few models of a case may have a cache
            found[f"{words}{what.removeprefix(how)}"] = _both(other, original, model, cast(others, torch.float64))
        if run == trial.case.run:
            twice, valid = _of_two_calls(trial, inputs.valid)
            found[f"{what}, of two calls"] = _both(twice, original, model, Inputs(kwargs=inputs.kwargs, valid=valid))
        if trial.case.layered:
            path, everywhere, behind = chosen.choice(replaced).path, chosen.random() < 0.25, chosen.random() < 0.5
            hook = _Hook(trial, path, everywhere=everywhere, behind=behind)
            hooked = trial.asked("a backward hook", lambda: hook.passed(run, original, inputs))
            if hooked is not None:  # one that adds in place to what is hooked says so
                found[f"{what}, {hook.words}"] = hooked, hook.passed(run, model, inputs)
        largest = _scale(run, original, inputs)
        for words, (mine, its) in found.items():
            same_gradients(trial, mine, its, largest, words)
        _of_gradients(trial, run, model, inputs, how)


def _of_gradients(trial: Trial, run: Run, model: nn.Module, inputs: Inputs, how: str) -> None:
    """Gradients of a sum of squares of gradients, of all parameters: torch's attention kernel for CPUs has none. What rounding
    is multiplied by on its way back, it is once more: of the digits that a tolerance leaves there stay half."""
    what = "gradients of gradients"
    for side in (trial.original, model):
        side.requires_grad_(True)
    mine = trial.asked(what, lambda: _twice(run, trial.original, inputs))
    if mine is not None:
        with replacement_side(what):
            its = _twice(run, model, inputs)
        same_gradients(trial, mine, its, largest_of(mine), f"{how}{what}", math.sqrt)


def _twice(run: Run, model: nn.Module, inputs: Inputs) -> Gradients:
    with torch.enable_grad():
        output = next(iter(run(model, inputs).values()))
        seen = output if inputs.valid is None else output[inputs.valid]
        names, parameters = zip(*model.named_parameters(), strict=True)
        once = torch.autograd.grad(seen.square().sum(), parameters, create_graph=True, allow_unused=True)
        squares = sum(one.square().sum() for one in once if one is not None)
        return dict(zip(names, torch.autograd.grad(squares, parameters, allow_unused=True), strict=True))  # type: ignore[arg-type]


def _gradients_alone(trial: Trial) -> None:
    """Gradients of all parameters in the trial's own dtype, after a first call without."""
    by_cache = trial.example.seed % 2 == 1
    run, inputs, how = _call(trial, by_cache=by_cache)
    model = trial.replaced.model
    with fused_path(model), torch.inference_mode(mode=trial.example.seed % 4 < 2):
        run(model, inputs)
    mine, its = _both(run, trial.original, model, inputs)
    same_gradients(trial, mine, its, largest_of(mine), f"{how}all parameters")
    _each_at_its_own_scale(_exact(trial, run, inputs), mine, its, how)


def _exact(trial: Trial, run: Run, inputs: Inputs) -> Gradients:
    """The original's gradients in float64."""
    wide = copy.deepcopy(trial.original).double()
    with exact_mode(), original_side("with gradients in float64"):
        return _backward(run, wide, cast(inputs, torch.float64))


def _each_at_its_own_scale(exact: Gradients, mine: Gradients, its: Gradients, how: str) -> None:
    """Beside the largest gradient of a model most are small, and in half precision could be missing without being far off. Each
    of which the original has some digits is asked for by itself, in root mean squares. Not those that are nothing but what
    float64 rounds, as a key's bias has: a trial in float64 autocast leaves as it is, and an original has all digits of them."""
    least = EXACT_TOLERANCE * largest_of(exact)
    for name, one in exact.items():
        expected, actual = mine[name], its[name]
        if one is None or expected is None or actual is None:
            continue
        scale = rms(one)
        if scale > least and rms(expected.double() - one) <= OWN * scale:
            error = rms(actual.double() - one) / scale
            if not error <= ITS:
                raise Disagreement(f"{how}gradient of {name}: relative error {error:.1e} at its own scale", error=error)


def _under_autocast(trial: Trial, model: nn.Module, frozen: list[str], *, by_cache: bool, what: str) -> None:
    """Forward alone, as people do it: what is saved in one dtype and multiplied in another raises on its way back. Numbers
    have to be off with other weights and inputs as well: of a bias of two elements an original may have digits by luck."""
    found = _off_under_autocast(trial, model, by_cache=by_cache, what=what)
    if found is None:
        return
    for other in (trial.with_numbers(1 + number) for number in range(CONFIRMATIONS)):
        twin = other.replaced.model
        _freeze(twin, frozen)
        _freeze(other.original, frozen)
        if _off_under_autocast(other, twin, by_cache=by_cache, what=what) is None:
            return
    raise found


def _off_under_autocast(trial: Trial, model: nn.Module, *, by_cache: bool, what: str) -> Disagreement | None:
    run, inputs, _ = _call(trial, by_cache=by_cache)

    def lower(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        with torch.autocast(trial.case.device, dtype=torch.bfloat16):
            return run(model, inputs)

    mine = trial.asked("under autocast", lambda: _backward(lower, trial.original, inputs))
    if mine is None:
        trial.original.zero_grad()  # what it has added up by then
        return None
    its = _backward(lower, model, inputs)
    _same_parameters(mine, its, f"under autocast, {what}")
    try:
        _each_at_its_own_scale(_exact(trial, run, inputs), mine, its, f"under autocast, {what}: ")
    except Disagreement as found:
        return found
    return None


class _Hook:
    """Changes gradients on their way back to a linear inside the layer at ``path``, or to every linear of a model; ``behind``
    it those that come out of it."""

    def __init__(self, trial: Trial, path: str, *, everywhere: bool, behind: bool) -> None:
        linears = [name for name, one in trial.original.get_submodule(path).named_modules() if name and _multiplies(one)]
        inside = not everywhere and linears
        self.path = f"{path}.{random.Random(trial.example.seed).choice(linears)}" if inside else None
        self.behind = behind
        self.words = f"a backward {'' if behind else 'pre-'}hook on {self.path or 'all modules'}"

    def passed(self, run: Run, model: nn.Module, inputs: Inputs) -> Gradients:
        """Gradients of ``model`` past the hook."""
        one = None if self.path is None else model.get_submodule(self.path)

        def hook(module: nn.Module, gradients: Any, *_: Any) -> Any:
            return scaled(gradients) if _multiplies(module) else None

        register: Any
        if self.behind:
            register = register_module_full_backward_hook if one is None else one.register_full_backward_hook
        else:
            register = register_module_full_backward_pre_hook if one is None else one.register_full_backward_pre_hook
        with register(hook):
            return _backward(run, model, inputs)


def _multiplies(module: nn.Module) -> bool:
    return "Linear" in type(module).__name__ or type(module).__name__ == "Conv1D"


def _call(trial: Trial, *, by_cache: bool) -> tuple[Run, Inputs, str]:
    """One call, or several with a cache, where the model has one: as a learned prefix in it gets its gradients."""
    inputs = trial.fresh_inputs()
    if not (by_cache and trial.case.caches(trial.example)):
        return trial.case.run, inputs, ""
    lengths = cuts(trial.example["tokens"], trial.example.seed)

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return {OUTPUT: in_chunks(model, inputs.kwargs, lengths)[0]}

    return run, with_cache(inputs), f"calls of {lengths} tokens with a cache, "


def _both(run: Run, original: nn.Module, model: nn.Module, inputs: Inputs) -> tuple[Gradients, Gradients]:
    with original_side("with gradients"):
        mine = _backward(run, original, inputs)
    with fused_path(model):
        its = _backward(run, model, inputs)
    return mine, its


def _of_two_calls(trial: Trial, valid: Tensor | None) -> tuple[Run, Tensor | None]:
    """A run that makes another call in the same form before there is a backward pass, in which each has to find what it saved;
    and the positions that count in both."""
    other = alike(trial, 1)
    kwargs = cast(other.kwargs, torch.float64)

    def run(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        first, second = trial.case.run(model, inputs), trial.case.run(model, Inputs(kwargs=kwargs, valid=other.valid))
        return {name: output + second[name] for name, output in first.items()}

    return run, None if valid is None or other.valid is None else valid & other.valid


def _freeze(model: nn.Module, names: list[str]) -> None:
    for name in names:
        model.get_parameter(name).requires_grad_(False)


def _backward(run: Run, model: nn.Module, inputs: Inputs) -> Gradients:
    """Gradients of a weighted sum of the outputs that count, by parameter name and by what was given, each added up over two
    passes through one graph; none stay on the model, which would change their dtype with its own."""
    inputs = mapped(inputs, leaf)
    with torch.enable_grad():
        output = next(iter(run(model, inputs).values()))
        seen = output if inputs.valid is None else output[inputs.valid]
        weights = torch.linspace(-1.0, 2.0, seen.numel(), dtype=seen.dtype, device=seen.device).reshape(seen.shape)
        total = (seen * weights).sum()
        given = tree_flatten_with_path(inputs.kwargs)[0]
        leaves = {f"the input{keystr(path)}": one for path, one in given if isinstance(one, Tensor) and one.requires_grad}
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        asked = (
            ()
            if not total.requires_grad
            else torch.autograd.grad(total, [*leaves.values(), *learning.values()], retain_graph=True, allow_unused=True)
        )
        if total.requires_grad:
            total.backward(retain_graph=True)
            total.backward()
    found = {name: one.grad for name, one in (leaves | dict(model.named_parameters())).items()}
    found |= {f"{name}, asked for": one for name, one in zip(leaves | learning, asked, strict=False)}
    model.zero_grad()
    return found


def gradients_of_layer(layer: nn.Module, call: Recorded, meanwhile: Callable[[Tensor], object] = lambda _: None) -> Gradients:
    """Gradients of parameters and of what the layer is given; between the passes ``meanwhile`` has the output."""
    given: list[Tensor] = []

    def wanted(one: Tensor) -> Tensor:
        given.append(leaf(one))
        return given[-1]

    args, kwargs = mapped((call.args, call.kwargs), wanted)
    with torch.enable_grad():
        output: Tensor = main_output(layer(*args, **kwargs))
        weights = torch.linspace(-1.0, 2.0, output.numel(), dtype=output.dtype, device=output.device)
        meanwhile(output)
    leaves = {f"input {place}": one for place, one in enumerate(given) if one.requires_grad} | dict(layer.named_parameters())
    found = torch.autograd.grad(output, [*leaves.values()], weights.reshape(output.shape), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def leaf(given: Tensor) -> Tensor:
    """``given`` as one that wants a gradient, as what an encoder or a learned prompt made does."""
    return given.detach().requires_grad_(given.is_floating_point())


def _same_parameters(mine: Gradients, its: Gradients, what: str) -> None:
    """Raise where a parameter has a gradient in the original and none in the replacement.

    megatron-core gives a bias none where the weight beside it is frozen; a replacement need not copy that.
    """
    for name, expected in mine.items():
        if expected is not None and its[name] is None:
            raise Disagreement(f"{what}: {name} has no gradient, and has one in the original")


def _scale(run: Run, model: nn.Module, inputs: Inputs) -> float:
    """The largest gradient of all, nothing frozen. What is left to learn may have none but rounding errors: a key's bias
    shifts all scores of a query alike."""
    model.requires_grad_(True)
    return largest_of(_backward(run, model, inputs))


def largest_of(gradients: Gradients) -> float:
    return max((float(one.abs().max()) for one in gradients.values() if one is not None), default=0.0)


def same_gradients(
    trial: Trial,
    mine: Gradients,
    its: Gradients,
    largest: float,
    what: str,
    allowed: Callable[[float], float] = operator.pos,
) -> None:
    """Raise unless gradients are equal on the scale of the ``largest``, as far as is ``allowed`` for the dtype's tolerance."""
    _same_parameters(mine, its, what)
    if largest == 0.0:
        raise Vacuous("all gradients of the original are zero")
    if not math.isfinite(largest):
        raise Vacuous("the original's gradients are not finite")
    for name, expected in mine.items():
        actual = its[name]
        if expected is None or actual is None:
            continue
        error = float((expected - actual).abs().max()) / largest
        if not error <= allowed(tolerance_of(expected)):
            raise Disagreement(f"{what}: gradient of {name}: relative error {error:.1e}", error=error)
        trial.evidence.note(error)


GRADIENTS = Property(
    name="gradients",
    statement="Gradients through the replacement, of parameters and of what a call is given, through a cache, past hooks, "
    "of two calls at once, in two passes and under autocast, are the original's, whichever parameters are frozen before or "
    "after; and so are gradients of gradients, where the original has any.",
    check=_gradients,
    exact=False,
    share=0.05,
)
GRADIENTS_ALONE = dataclasses.replace(GRADIENTS, check=_gradients_alone)
"""What of it can be asked in any dtype."""
