"""Forms of a call: the same layer, its arguments by position or by name, laid out otherwise in memory, a mask of another
kind or none, told whether to be causal; the same model, laid out otherwise."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Example
from ..trial import Disagreement, Trial, fused_path, original_side, replacement_side, sequence_first
from .base import Property, same_tensor
from .equality import Recorded, main_output, recorded, valid_positions
from .hidden import BEYOND_HALF, IMAGE, LAYOUTS, beyond_half, filled, given, repeated, with_zeros
from .inputs import changed, mapped

MASK = "attention_mask"
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
RANDOM = "of each query's own"
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "for two keys more": lambda mask: torch.cat((mask, mask[..., :1], mask[..., :1]), dim=-1),
    "for one key less": lambda mask: mask[..., 1:],
}
"""What makes a mask wrong; one for a single key goes for all."""
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
    for words, mask in _masks(kwargs.get(MASK), trial.example):
        _masked(trial, path, mine, its, Recorded(args, {**kwargs, MASK: mask}, None), words)
    if MASK in kwargs and trial.case.speaks_transformers:
        own = dict(_of_each_query(main_output(call.output), trial.example.seed))
        for words, mask in own.items():
            _masked(trial, path, mine, its, Recorded(args, {**kwargs, MASK: mask}, None), words)
        seen = own[RANDOM]
        mask = seen if trial.example.seed & 1 else torch.zeros_like(seen, dtype=torch.get_default_dtype())
        for words, lengthen in LENGTHS.items():
            _of_another_length(path, mine, its, Recorded(args, {**kwargs, MASK: lengthen(mask)}, None), words)
        unmasked: dict[str, bool | None] = {MASK: None}
        word: dict[str, bool | None] = {"is_causal": bool(trial.example.seed & 2)}
        for otherwise in (unmasked, unmasked | word, word):
            _told(trial, path, mine, its, Recorded(args, {**kwargs, **otherwise}, None), otherwise)


def _given(
    trial: Trial,
    path: str,
    mine: nn.Module,
    its: nn.Module,
    call: Recorded,
    words: str,
    change: Callable[[Tensor], Tensor],
) -> None:
    """A call with other hidden states."""
    expected, actual = _both_given(mine, its, call, words, change)
    same_tensor(trial, expected, actual, valid_positions(trial, expected), f"{path} {words}")


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
    change = functools.partial(filled, number=number, sequence_first=sequence_first(trial.replaced.model))
    words = f"called with a row of {number}"
    expected, actual = _both_given(mine, its, call, words, change)
    _same_where_numbers(trial, expected, actual, valid_positions(trial, expected), f"{path} {words}")


def _same_where_numbers(trial: Trial, expected: Tensor, actual: Tensor, valid: Tensor | None, what: str) -> None:
    """Raise unless ``actual`` agrees with ``expected``, and is not finite where ``expected`` is not. Which of the numbers that
    are not finite comes out depends on the order of operations."""
    lost = ~expected.isfinite()
    found = lost & actual.isfinite()
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


def _masks(mask: Any, example: Example) -> Iterator[tuple[str, Any]]:
    """A mask (B, 1, T, S) in the other forms that torch or transformers have for one. What an original makes of them depends
    on its attention: sdpa takes truth for a key that is seen, eager adds whatever number it is."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return
    seen = mask if mask.dtype is torch.bool else mask == 0
    yield "as False", False
    yield "as truth values", seen
    yield "as integers", seen.long()
    for dtype in (torch.get_default_dtype(), torch.float16):
        added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        yield f"in {dtype}", added.masked_fill(~seen, torch.finfo(dtype).min)
    added = torch.zeros(seen.shape, dtype=torch.get_default_dtype(), device=seen.device)
    yield "of minus infinity", added.masked_fill(~seen, -torch.inf)
    if bool((seen == seen[:1]).all()):
        yield "of one row for all", added[:1].masked_fill(~seen[:1], torch.finfo(added.dtype).min)
    for words, heads in (("all heads", 1), ("each head", heads_of(example))):
        generator = torch.Generator().manual_seed(example.seed)
        bias = torch.randn(seen.shape[0], heads, *seen.shape[2:], generator=generator, dtype=torch.get_default_dtype())
        bias = bias.to(seen.device)
        yield f"that weighs keys, for {words}", bias.masked_fill(~seen, torch.finfo(bias.dtype).min)


def _of_each_query(hidden: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Masks (B, 1, T, T) of truth for ``hidden`` (B, T, D), by which each query sees itself and keys of its own."""
    batch, tokens = hidden.shape[:2]
    itself = torch.eye(tokens, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    yield RANDOM, (itself | torch.randint(2, (batch, 1, tokens, tokens), generator=generator).bool()).to(hidden.device)
    earlier, second = itself.new_ones(tokens, tokens).tril(), torch.arange(tokens) >= tokens // 2
    apart = earlier & (second[:, None] == second)
    apart[-1] = True
    yield "of two documents apart and a question on both", apart.expand(batch, 1, -1, -1).to(hidden.device)


def heads_of(example: Example) -> int:
    """How many heads the layers of ``example`` have; 1 where no axis tells."""
    values = example.values
    heads = values.get("heads") or int(str(values.get("kv_heads", 1))) * int(str(values.get("group", 1)))
    return int(str(heads))


def _masked(trial: Trial, path: str, mine: nn.Module, its: nn.Module, call: Recorded, words: str) -> None:
    """A call with a mask of another kind; not every original takes it, and what one takes the replacement may leave to it."""
    try:
        expected = main_output(mine(*call.args, **call.kwargs))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return
    with replacement_side(f"called with a mask {words}"):
        actual = main_output(its(*call.args, **call.kwargs))
    _same_where_numbers(trial, expected, actual, valid_positions(trial, expected), f"{path} called with a mask {words}")


def _of_another_length(path: str, mine: nn.Module, its: nn.Module, call: Recorded, words: str) -> None:
    """A call with a mask for more keys or fewer than there are, which is wrong wherever the original says so."""
    try:
        mine(*call.args, **call.kwargs)
    except (ValueError, RuntimeError) as problem:
        try:
            its(*call.args, **call.kwargs)
        except Exception:
            return
        raised = type(problem).__name__
        raise Disagreement(f"{path} called with a mask {words}: the original raises {raised}, the replacement nothing") from None


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
