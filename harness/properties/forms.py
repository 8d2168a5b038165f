"""Forms of a call: the same layer, its arguments by position or by name, laid out otherwise in memory, a mask of another
kind or none, told whether to be causal; the same model, laid out otherwise."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nested import mapped
from ..trial import Disagreement, Trial, fused_path, original_side, replacement_side, sequence_first
from .base import Property, same_tensor
from .equality import Recorded, main_output, recorded, valid_positions
from .hidden import BEYOND_HALF, IMAGE, LAYOUTS, beyond_half, filled, given, repeated, with_zeros
from .masks import LENGTHS, RANDOM, masks, of_each_query

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
MASK = "attention_mask"
ENCODER = "encoder_hidden_states"
ENCODER_MASK = "encoder_attention_mask"
UNKNOWN = "an_argument_of_nobody"
HIDDEN = {
    f"with a hidden state of {BEYOND_HALF:g}": beyond_half,
    "with a row of zeros": with_zeros,
    "with one row expanded to all": repeated,
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
        expected = trial.run_original(mapped(trial.inputs, change))
        actual = trial.run_replaced(model, mapped(trial.fresh_inputs(), change))
        for name, tensor in expected.items():
            _same_where_numbers(trial, tensor, actual[name], None, f"{name} {words}")


def _of_layer(trial: Trial) -> None:
    calls = sorted(recorded(trial).items())
    path, call = calls[trial.example.seed % len(calls)]
    sides = _Sides(trial, path, trial.original.get_submodule(path), trial.replaced.model.get_submodule(path))
    args, kwargs = _by_name(sides.mine, call)
    sides.asked("by position", *_by_position(sides.mine, call), must=True)
    sides.asked("by name", args, kwargs, must=True)
    for words, layout in LAYOUTS.items():
        sides.asked(f"with tensors {words}", mapped(call.args, layout), mapped(call.kwargs, layout))
    for words, change in HIDDEN.items():
        sides.asked(words, call.args, call.kwargs, must=True, change=change)
    batch = 1 if sequence_first(trial.replaced.model) else 0
    for number in (torch.nan, torch.inf):  # what comes of it must not be finite either: by that an overflow is noticed
        change = functools.partial(filled, number=number, sequence_first=bool(batch))
        sides.asked(f"with a row of {number}", call.args, call.kwargs, must=True, change=change, lost_in=batch)
    sides.alike(f"with {UNKNOWN}=1", args, {**kwargs, UNKNOWN: 1})
    if ENCODER in inspect.signature(sides.mine.forward).parameters:
        _beside_an_encoder(sides, call, args, kwargs)
    for name, called in ((MASK, "a mask"), (ENCODER_MASK, "a mask of the encoder's")):
        for words, mask in masks(kwargs.get(name), trial.example):
            sides.asked(f"with {called} {words}", args, {**kwargs, name: mask}, fused=False)
    if MASK in kwargs and trial.case.speaks_transformers:
        _with_masks_of_each_query(sides, call, args, kwargs)


def _beside_an_encoder(sides: _Sides, call: Recorded, args: Args, kwargs: Kwargs) -> None:
    """A call without the encoder's states that it had, or with those of one row for all, or with a mask by which the first row
    sees none of them; or with some, where it had none."""
    states = kwargs.get(ENCODER)
    if states is None:
        sides.alike("with an encoder's states", args, {**kwargs, ENCODER: main_output(call.output)})
        return
    sides.alike("with no encoder's states", args, {**kwargs, ENCODER: None, ENCODER_MASK: None})
    shared = {**kwargs, ENCODER: states[:1], ENCODER_MASK: None}
    sides.asked("with an encoder's states of one row for all", args, shared, fused=False)
    seen = torch.ones(len(states), 1, 1, states.shape[1], dtype=torch.bool, device=states.device)
    seen[0] = False
    lowest = torch.finfo(states.dtype).min
    mask = seen if sides.trial.example.seed & 1 else torch.zeros_like(seen, dtype=states.dtype).masked_fill(~seen, lowest)
    sides.asked("with an encoder of which a row sees nothing", args, {**kwargs, ENCODER_MASK: mask}, fused=False)


def _with_masks_of_each_query(sides: _Sides, call: Recorded, args: Args, kwargs: Kwargs) -> None:
    """Masks that no rule makes, masks of a wrong length, and calls that leave it to the layer which keys a query sees, or have a
    word on it, which beside an encoder's states the replacement may leave to the original."""
    seed = sides.trial.example.seed
    own = dict(of_each_query(main_output(call.output), seed))
    for words, mask in own.items():
        sides.asked(f"with a mask {words}", args, {**kwargs, MASK: mask}, fused=False)
    seen = own[RANDOM]
    mask = seen if seed & 1 else torch.zeros_like(seen, dtype=sides.trial.dtype)
    for words, lengthen in LENGTHS.items():
        sides.both_raise(f"with a mask {words}", args, {**kwargs, MASK: lengthen(mask)})
    unmasked: dict[str, bool | None] = {MASK: None}
    word: dict[str, bool | None] = {"is_causal": bool(seed & 2)}
    for otherwise in (unmasked, unmasked | word, word):
        left = bool(otherwise.get("is_causal")) and kwargs.get(ENCODER) is not None
        words = "with " + ", ".join(f"{name}={value}" for name, value in otherwise.items())
        sides.asked(words, args, {**kwargs, **otherwise}, fused=not left, everywhere=MASK in otherwise)


@dataclass(frozen=True)
class _Sides:
    """An original layer and the one in its place, called alike."""

    trial: Trial
    path: str
    mine: nn.Module
    its: nn.Module

    def asked(
        self,
        words: str,
        args: Args,
        kwargs: Kwargs,
        *,
        must: bool = False,
        fused: bool = True,
        everywhere: bool = False,
        change: Callable[[Tensor], Tensor] | None = None,
        lost_in: int | None = None,
    ) -> None:
        """Raise unless both give the same, ``everywhere`` or where positions count. What an original that does not have to
        (``must``) cannot do is left out, which the evidence says. ``change`` is made to the hidden states of both; by it the
        first row of dimension ``lost_in`` is lost."""
        words = f"called {words}"

        def mine() -> Tensor:
            return _called(self.mine, args, kwargs, change)

        if must:
            with original_side(words):
                expected = mine()
        else:
            found = self.trial.asked(words, mine)
            if found is None:
                return
            expected = found
        with replacement_side(words), fused_path(self.its) if fused else contextlib.nullcontext():
            actual = _called(self.its, args, kwargs, change)
        valid = None if everywhere else valid_positions(self.trial, expected)
        _same_where_numbers(self.trial, expected, actual, valid, f"{self.path} {words}", lost_in)

    def alike(self, words: str, args: Args, kwargs: Kwargs) -> None:
        """Raise unless both give the same, or both raise; the replacement may leave it to the original."""
        if not self.both_raise(words, args, kwargs):
            self.asked(words, args, kwargs, fused=False)

    def both_raise(self, words: str, args: Args, kwargs: Kwargs) -> bool:
        """Whether the original raises. Raises ``Disagreement`` where it does and the replacement does not."""
        try:
            self.mine(*args, **kwargs)
        except Exception as problem:
            try:
                self.its(*args, **kwargs)
            except Exception:
                return True
            raised = f"the original raises {type(problem).__name__}, the replacement nothing"
            raise Disagreement(f"{self.path} called {words}: {raised}") from None
        return False


def _called(layer: nn.Module, args: Args, kwargs: Kwargs, change: Callable[[Tensor], Tensor] | None) -> Tensor:
    with given(layer, "", change) if change is not None else contextlib.nullcontext():
        output: Tensor = main_output(layer(*args, **kwargs))
        return output


def _same_where_numbers(
    trial: Trial, expected: Tensor, actual: Tensor, valid: Tensor | None, what: str, lost_in: int | None = None
) -> None:
    """Raise unless ``actual`` agrees with ``expected``, and is not finite where ``expected`` is not. Which of the numbers that
    are not finite comes out depends on the order of operations; and on processors with AMX torch's own products in bfloat16 make
    NaN of neighbouring rows as well, so that in bfloat16 none are asked for but in the first row of dimension ``lost_in``."""
    lost = ~expected.isfinite()
    found = lost & actual.isfinite()
    if expected.dtype is torch.bfloat16:
        surely = torch.zeros_like(found)
        if lost_in is not None:
            surely.select(lost_in, 0).fill_(True)
        found &= surely
    if bool((found if valid is None else found[valid]).any()):
        raise Disagreement(f"{what}: the original gives none there, the replacement gives numbers")
    same_tensor(trial, expected.masked_fill(lost, 0.0), actual.masked_fill(lost, 0.0), valid, what)


def _by_position(layer: nn.Module, call: Recorded) -> tuple[Args, Kwargs]:
    """The recorded call with as many arguments by position as the signature allows without a gap."""
    bound = inspect.signature(layer.forward).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def _by_name(layer: nn.Module, call: Recorded) -> tuple[Args, Kwargs]:
    """The recorded call with every argument by name that has one."""
    signature = inspect.signature(layer.forward)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind in FIXED]
    named = dict(zip(names, call.args, strict=False))
    return call.args[len(names) :], {**named, **call.kwargs}


FORMS = Property(
    name="call forms",
    statement="A replaced layer takes its arguments by position and by name, however they lie in memory and whatever half "
    "precision could hold of them, or nothing finite, a mask of any kind or none, an encoder's states for each row, for all of "
    "them or hidden from one, and a word on causality, as the original does, and no mask of a length that it does not take; a "
    "whole model its tensors, however they lie in memory, and images that are no numbers.",
    check=_forms,
    share=0.05,
)
