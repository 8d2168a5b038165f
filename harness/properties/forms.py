"""Forms of a call: the same layer, its arguments by position or by name, laid out otherwise in memory, a mask of another
kind or none, told whether to be causal; the same model, laid out otherwise."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..trial import Disagreement, Trial, fused_path, original_side, replacement_side, sequence_first
from .base import Property, same_tensor
from .equality import Recorded, main_output, recorded, valid_positions
from .hidden import BEYOND_HALF, IMAGE, LAYOUTS, beyond_half, filled, given, repeated, with_zeros
from .inputs import changed, mapped
from .masks import LENGTHS, RANDOM, masks, of_each_query

MASK = "attention_mask"
ENCODER = "encoder_hidden_states"
ENCODER_MASK = "encoder_attention_mask"
UNKNOWN = "an_argument_of_nobody"
HIDDEN = {
    f"called with a hidden state of {BEYOND_HALF:g}": beyond_half,
    "called with a row of zeros": with_zeros,
    "called with one row expanded to all": repeated,
}
"""Half precision has no such number, and neither has a kernel that keeps within it; by nothing a norm cannot divide; a kernel
that writes to its input, or goes from row to row in its memory, cannot take a row that is there once."""
OF_MODELS = {
    **{f"called with tensors {words}": layout for words, layout in LAYOUTS.items()},
    "called with one row expanded to all": lambda one: repeated(one) if one.dim() else one,
    "called with images whose first row is no number": lambda one: (
        filled(one, torch.nan, sequence_first=False) if one.dim() == IMAGE else one
    ),
}
"""What is done to every tensor of a whole model's call."""
FIXED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _forms(trial: Trial) -> None:
    if trial.case.layered:
        _of_layer(trial)
    else:
        _of_model(trial)


def _of_model(trial: Trial) -> None:
    """A whole model, all tensors of its call changed alike. How an image lies in memory is an axis besides."""
    model = trial.replaced.model
    for words, change in OF_MODELS.items():
        expected = trial.run_original(changed(trial.inputs, change))
        actual = trial.run_replaced(model, changed(trial.fresh_inputs(), change))
        for name, tensor in expected.items():
            _same_where_numbers(trial, tensor, actual[name], None, f"{name} {words}")


def _of_layer(trial: Trial) -> None:
    calls = sorted(recorded(trial).items())
    path, call = calls[trial.example.seed % len(calls)]
    mine, its = trial.original.get_submodule(path), trial.replaced.model.get_submodule(path)
    for words, args, kwargs in (("by position", *_by_position(mine, call)), ("by name", *_by_name(mine, call))):
        with original_side(f"called {words}"):
            expected = main_output(mine(*args, **kwargs))
        with replacement_side(f"called {words}"), fused_path(its):
            actual = main_output(its(*args, **kwargs))
        same_tensor(trial, expected, actual, valid_positions(trial, expected), f"{path} called {words}")
    for words, layout in LAYOUTS.items():
        _laid_out(trial, path, mine, its, Recorded(mapped(call.args, layout), mapped(call.kwargs, layout), None), words)
    for words, change in HIDDEN.items():
        _given(trial, path, mine, its, call, words, change)
    for number in (torch.nan, torch.inf):
        _poisoned(trial, path, mine, its, call, number)
    args, kwargs = _by_name(mine, call)
    _alike(trial, path, mine, its, Recorded(args, {**kwargs, UNKNOWN: 1}, None), f"{UNKNOWN}=1")
    _beside_an_encoder(trial, path, mine, its, call)
    for name, called in ((MASK, "a mask"), (ENCODER_MASK, "a mask of the encoder's")):
        for words, mask in masks(kwargs.get(name), trial.example):
            _masked(trial, path, mine, its, Recorded(args, {**kwargs, name: mask}, None), f"{called} {words}")
    if MASK in kwargs and trial.case.speaks_transformers:
        own = dict(of_each_query(main_output(call.output), trial.example.seed))
        for words, mask in own.items():
            _masked(trial, path, mine, its, Recorded(args, {**kwargs, MASK: mask}, None), f"a mask {words}")
        seen = own[RANDOM]
        mask = seen if trial.example.seed & 1 else torch.zeros_like(seen, dtype=trial.dtype)
        for words, lengthen in LENGTHS.items():
            _refused_alike(path, mine, its, Recorded(args, {**kwargs, MASK: lengthen(mask)}, None), f"a mask {words}")
        unmasked: dict[str, bool | None] = {MASK: None}
        word: dict[str, bool | None] = {"is_causal": bool(trial.example.seed & 2)}
        for otherwise in (unmasked, unmasked | word, word):
            _told(trial, path, mine, its, Recorded(args, {**kwargs, **otherwise}, None), otherwise)


def _beside_an_encoder(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded) -> None:
    """A call without the encoder's states that it had, or with some, where it had none."""
    if ENCODER not in inspect.signature(mine.forward).parameters:
        return
    args, kwargs = _by_name(mine, call)
    if kwargs.get(ENCODER) is None:
        words, change = "an encoder's states", {ENCODER: main_output(call.output)}
    else:
        words, change = "no encoder's states", {ENCODER: None, ENCODER_MASK: None}
    _alike(trial, path, mine, its, Recorded(args, {**kwargs, **change}, None), words)


def _given(
    trial: Trial,
    path: str,
    mine: nn.Module,
    its: nn.Module,
    call: Recorded,
    words: str,
    change: Callable[[Tensor], Tensor],
) -> None:
    """A call with other hidden states, which in half precision may be infinite."""
    expected, actual = _both_given(mine, its, call, words, change)
    _same_where_numbers(trial, expected, actual, valid_positions(trial, expected), f"{path} {words}")


def _both_given(
    mine: nn.Module, its: nn.Module, call: Recorded, words: str, change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What both sides make of ``change`` of their hidden states."""
    with original_side(words), given(mine, "", change):
        expected = main_output(mine(*call.args, **call.kwargs))
    with replacement_side(words), fused_path(its), given(its, "", change):
        actual = main_output(its(*call.args, **call.kwargs))
    return expected, actual


def _poisoned(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded, number: float) -> None:
    """A call with a row that is not finite. What comes of it must not be either: by that an overflow is noticed."""
    places = 1 if sequence_first(trial.replaced.model) else 0
    change = functools.partial(filled, number=number, sequence_first=bool(places))
    words = f"called with a row of {number}"
    expected, actual = _both_given(mine, its, call, words, change)
    of_row = torch.zeros_like(expected, dtype=torch.bool)
    of_row.select(places, 0).fill_(True)
    _same_where_numbers(trial, expected, actual, valid_positions(trial, expected), f"{path} {words}", of_row)


def _same_where_numbers(
    trial: Trial, expected: Tensor, actual: Tensor, valid: Tensor | None, what: str, surely: Tensor | None = None
) -> None:
    """Raise unless ``actual`` agrees with ``expected``, and is not finite where ``expected`` is not. Which of the numbers that
    are not finite comes out depends on the order of operations; and on processors with AMX torch's own products in bfloat16 make
    NaN of neighbouring rows as well, so that in bfloat16 none are asked for but ``surely``."""
    lost = ~expected.isfinite()
    found = lost & actual.isfinite()
    if expected.dtype is torch.bfloat16:
        found = found & surely if surely is not None else torch.zeros_like(found)
    if bool((found if valid is None else found[valid]).any()):
        raise Disagreement(f"{what}: the original gives none there, the replacement gives numbers")
    same_tensor(trial, expected.masked_fill(lost, 0.0), actual.masked_fill(lost, 0.0), valid, what)


def _laid_out(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded, words: str) -> None:
    """A call whose tensors lie otherwise in memory; not every original takes them."""
    try:
        expected = main_output(mine(*call.args, **call.kwargs))
    except RuntimeError:
        return
    with replacement_side(f"called with tensors {words}"), fused_path(its):
        actual = main_output(its(*call.args, **call.kwargs))
    same_tensor(trial, expected, actual, valid_positions(trial, expected), f"{path} called with tensors {words}")


def _masked(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded, words: str) -> None:
    """A call with a mask of another kind; not every original takes it, and what one takes the replacement may leave to it."""
    try:
        expected = main_output(mine(*call.args, **call.kwargs))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return
    with replacement_side(f"called with {words}"):
        actual = main_output(its(*call.args, **call.kwargs))
    _same_where_numbers(trial, expected, actual, valid_positions(trial, expected), f"{path} called with {words}")


def _alike(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded, words: str) -> None:
    """A call with something that an original may not take; the replacement may leave it to the original, which then raises."""
    try:
        expected = main_output(mine(*call.args, **call.kwargs))
    except (AttributeError, TypeError, ValueError, RuntimeError) as problem:
        _raises_too(path, its, call, words, problem)
        return
    with replacement_side(f"called with {words}"):
        actual = main_output(its(*call.args, **call.kwargs))
    same_tensor(trial, expected, actual, valid_positions(trial, expected), f"{path} called with {words}")


def _refused_alike(path: str, mine: nn.Module, its: nn.Module, call: Recorded, words: str) -> None:
    """A call that is wrong wherever the original says so, and otherwise of no interest."""
    try:
        mine(*call.args, **call.kwargs)
    except (AttributeError, TypeError, ValueError, RuntimeError) as problem:
        _raises_too(path, its, call, words, problem)


def _raises_too(path: str, its: nn.Module, call: Recorded, words: str, problem: Exception) -> None:
    try:
        its(*call.args, **call.kwargs)
    except Exception:
        return
    raised = type(problem).__name__
    raise Disagreement(f"{path} called with {words}: the original raises {raised}, the replacement nothing") from None


def _told(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded, otherwise: dict[str, bool | None]) -> None:
    """A call that leaves it to the layer which keys a query sees, or has a word on it; not every release takes one, and what
    it means beside an encoder's states the replacement may leave to the original."""
    try:
        expected = main_output(mine(*call.args, **call.kwargs))
    except (TypeError, ValueError):
        return
    left = otherwise.get("is_causal") and call.kwargs.get("encoder_hidden_states") is not None
    words = "called with " + ", ".join(f"{name}={value}" for name, value in otherwise.items())
    with replacement_side(words), contextlib.nullcontext() if left else fused_path(its):
        actual = main_output(its(*call.args, **call.kwargs))
    valid = None if MASK in otherwise else valid_positions(trial, expected)
    same_tensor(trial, expected, actual, valid, f"{path} {words}")


def _by_position(layer: nn.Module, call: Recorded) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The recorded call with as many arguments by position as the signature allows without a gap."""
    bound = inspect.signature(layer.forward).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def _by_name(layer: nn.Module, call: Recorded) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The recorded call with every argument by name that has one."""
    signature = inspect.signature(layer.forward)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in FIXED]
    named = dict(zip(names, call.args, strict=False))
    return call.args[len(names) :], {**named, **call.kwargs}


FORMS = Property(
    name="call forms",
    statement="A replaced layer takes its arguments by position and by name, however they lie in memory and whatever half "
    "precision could hold of them, or nothing finite, a mask of any kind or none, and a word on causality, as the original does, "
    "and no mask of a length that it does not take; a whole model its tensors, however they lie in memory, and images that are "
    "no numbers.",
    check=_forms,
    share=0.05,
)
