"""The cache belongs to the caller, who reorders, crops, preallocates, empties and exchanges it between calls.

Shapes: B batch, T tokens, n tokens that follow.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..case import Inputs
from ..nested import mapped
from ..trial import Trial, fused_path, original_side
from .base import Property, cached, identical, same_outputs
from .cache import (
    FEW,
    OUTPUT,
    arguments,
    asked_of_both,
    cached_trial,
    cuts,
    extended,
    in_chunks,
    own_cache,
    piece,
    tree,
    valid_in,
    with_a_cross_cache,
)
from .inputs import other_inputs

Continue = Callable[[nn.Module], Tensor]
MANY_PLACES = 2_100
"""Of a static cache: more than a kernel takes at once, whole parts of which nothing fills."""
SHORT = 128
"""Tokens below which eager scores with ``MANY_PLACES`` take no time to speak of."""


def _edits(trial: Trial) -> None:
    """Beams that change places, which a layer sees by nothing but what the cache holds, and one of the other edits."""
    seed = trial.example.seed
    trial = cached_trial(trial).at_least("batch", 2).at_least("tokens", 2)
    kwargs = arguments(trial.inputs)
    # Exact mode makes no numbers lower, and beside half precision of another kind not every original attends.
    lower = ("lower",) if trial.dtype is torch.float32 else ()
    for edit in ("reorder", ("select", "repeat", "crop", "steer")[seed % 4], *lower):
        if edit == "crop":
            _both(trial, functools.partial(_cropped, kwargs=kwargs), "after the latest tokens were cropped")
        elif edit in EACH_LAYER:
            continued = functools.partial(_changed, kwargs=kwargs, change=EACH_LAYER[edit])
            _both(trial, continued, f"after what is in the cache was {EACH_LAYER[edit].__name__}")
        else:
            index = beams(edit, kwargs["input_ids"].shape[0], seed)
            continued = functools.partial(_rearranged, kwargs=kwargs, edit=edit, index=index)
            _both(trial, continued, f"after {edit} of rows {index.tolist()}")


def _both(trial: Trial, continued: Continue, what: str, valid: Tensor | None = None, *, fused: bool = True) -> None:
    """Run the same on either side and compare. Unless it has to be ``fused``, a replacement may leave it to the original."""
    with original_side(what):
        expected = {OUTPUT: continued(trial.original)}
    with fused_path(trial.replaced.model) if fused else contextlib.nullcontext():
        actual = {OUTPUT: continued(trial.replaced.model)}
    same_outputs(trial, expected, actual, valid, what)


def beams(edit: str, batch: int, seed: int) -> Tensor:
    """Rows of the old batch that the rows of the new one continue."""
    if edit == "repeat":
        return torch.arange(batch).repeat_interleave(2)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(batch, (batch if edit == "reorder" else 1 + seed % batch,), generator=generator)
    return index.roll(1) if torch.equal(index, torch.arange(batch)) else index


def _rearranged(model: nn.Module, kwargs: dict[str, Any], edit: str, index: Tensor) -> Tensor:
    """Two steps after a prompt, from a cache whose rows are the prompt's rows ``index``; (rows, 2, D)."""
    return continued(model, kwargs, in_chunks(model, kwargs, [kwargs["input_ids"].shape[1]])[1], edit, index)


def continued(model: nn.Module, kwargs: dict[str, Any], cache: Any, edit: str, index: Tensor) -> Tensor:
    """Two steps after the tokens of ``kwargs``, once the rows of ``cache`` are their rows ``index``; (rows, 2, D)."""
    if edit == "reorder":
        cache.reorder_cache(index)
    elif edit == "select":
        cache.batch_select_indices(index)
    else:
        cache.batch_repeat_interleave(2)
    ids = kwargs["input_ids"]
    chosen = mapped(kwargs, lambda tensor: tensor[index] if tensor.shape[0] == ids.shape[0] else tensor)
    return _steps(model, chosen, ids[:, :2].flip(0)[index], cache)


def _cropped(model: nn.Module, kwargs: dict[str, Any]) -> Tensor:
    """Two steps after a prompt whose last token was taken back; (B, 2, D)."""
    ids = kwargs["input_ids"]
    cache = in_chunks(model, kwargs, [ids.shape[1]])[1]
    cache.crop(-1)
    return _steps(model, piece(kwargs, 0, ids.shape[1] - 1), ids[:, :2].flip(0), cache)


def _changed(model: nn.Module, kwargs: dict[str, Any], change: Callable[[Any], None]) -> Tensor:
    """Two steps after a prompt, once each layer of its cache was changed; (B, 2, D)."""
    ids = kwargs["input_ids"]
    cache = in_chunks(model, kwargs, [ids.shape[1]])[1]
    for layer in getattr(cache, "self_attention_cache", cache).layers:
        change(layer)
    return _steps(model, kwargs, ids[:, :2].flip(0), cache)


def doubled(layer: Any) -> None:
    """In place, as who steers a model does."""
    layer.values.mul_(2.0)


def lowered(layer: Any) -> None:
    """As it is where a prompt was read under autocast, and the rest is not."""
    layer.keys, layer.values = layer.keys.to(torch.bfloat16), layer.values.to(torch.bfloat16)


EACH_LAYER: dict[str, Callable[[Any], None]] = {"steer": doubled, "lower": lowered}


def _steps(model: nn.Module, kwargs: dict[str, Any], ids: Tensor, cache: Any) -> Tensor:
    """Outputs (B, n, D) for ``ids`` (B, n), one call each, behind the tokens of ``kwargs``."""
    outputs = []
    for end in range(1, ids.shape[1] + 1):
        call = extended(kwargs, ids[:, :end])
        output = model(**{**call, "input_ids": ids[:, end - 1 : end]}, past_key_values=cache)
        outputs.append(output.last_hidden_state)
    return torch.cat(outputs, dim=1)


def _static(trial: Trial) -> None:
    """A prompt in chunks on a preallocated cache; then the cache is emptied and serves another prompt, and the first is
    served by another cache, while the emptied one is alive. A third takes a few tokens at once."""
    trial = cached_trial(trial)
    first = trial.inputs
    batch, tokens = first.kwargs["input_ids"].shape
    second = other_inputs(trial, 1, **{**trial.example.values, "batch": batch, "tokens": tokens})
    lengths = cuts(tokens, trial.example.seed)
    size = tokens + (0, 1, 150)[trial.example.seed % 3]
    sizes = (size, MANY_PLACES if tokens < SHORT and trial.example.seed & 4 else size)
    places = beams("reorder", batch, trial.example.seed)
    prompts = [arguments(inputs) for inputs in (first, second)]
    try:
        expected = _reused(trial.original, prompts, lengths, sizes, places)
    except RuntimeError:
        # BLOOM's positions are computed from the mask, whose length is not that of a preallocated cache.
        prompts = [{**kwargs, "attention_mask": None} for kwargs in prompts]
        with original_side("with a static cache"):
            expected = _reused(trial.original, prompts, lengths, sizes, places)
    with fused_path(trial.replaced.model):
        actual = _reused(trial.replaced.model, prompts, lengths, sizes, places)
    for inputs, kwargs, one, other in zip((first, second, first), (*prompts, prompts[0]), expected, actual, strict=True):
        what = f"static cache, calls of {lengths} tokens"
        same_outputs(trial, {OUTPUT: one}, {OUTPUT: other}, valid_in(inputs, kwargs), what)
    _static_tree(trial, prompts[0])


def _static_tree(trial: Trial, kwargs: dict[str, Any]) -> None:
    """A prompt on a preallocated cache, and a few tokens at once behind it with a mask of all places."""
    tokens = kwargs["input_ids"].shape[1]
    size = tokens + 2 * FEW
    form, call = tree(trial, kwargs, FEW, places=size)

    def drafted(model: nn.Module) -> Tensor:
        cache = in_chunks(model, kwargs, [tokens], preallocated(model, size))[1]
        output: Tensor = model(**call, past_key_values=cache).last_hidden_state
        return output

    asked_of_both(trial, f"{FEW} tokens at once behind a static cache, with a mask {form}", drafted)


def _reused(
    model: nn.Module, prompts: list[dict[str, Any]], lengths: list[int], sizes: tuple[int, int], places: Tensor
) -> list[Tensor]:
    """Outputs for each prompt, all on one preallocated cache that is emptied in between, and for the first on another one, whose
    ``sizes`` are given. Before the last call the rows of a cache become its rows ``places``, as those of beams do.

    What cross-attention keeps of the encoder grows with its source and starts anew with each prompt: emptying a cache of
    both kinds leaves it as it was in transformers 5.4.
    """
    first_cache, another = (_static_cache(model, size) for size in sizes)
    outputs = []
    for kwargs, static in zip((*prompts, prompts[0]), (*repeat(first_cache, len(prompts)), another), strict=True):
        cache = with_a_cross_cache(model, static)
        *first, last = lengths
        parts = [in_chunks(model, kwargs, first, cache)[0]] if first else []
        if first:
            static.reorder_cache(places)
        parts.append(in_chunks(model, kwargs, [last], cache, start=sum(first))[0])
        outputs.append(torch.cat(parts, dim=1))
        static.reset()
    return outputs


def preallocated(model: nn.Module, size: int) -> Any:
    """A static cache of ``size`` places for a call of ``model``."""
    return with_a_cross_cache(model, _static_cache(model, size))


def _static_cache(model: nn.Module, size: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=cast(Any, model.config), max_cache_len=size)


def _fresh(trial: Trial) -> None:
    """Two prompts whose caches are alive at once and whose calls alternate; then the first prompt again."""
    trial = cached_trial(trial)
    model = trial.replaced.model
    prompts = [_Prompt(trial, trial.inputs), _Prompt(trial, other_inputs(trial, 1))]
    with fused_path(model):
        for turn in range(max(len(prompt.lengths) for prompt in prompts)):
            for prompt in prompts:
                prompt.call(model, turn)
    for prompt in prompts:
        prompt.check("two prompts in turn, each with a cache of its own")
    again = in_chunks(model, prompts[0].kwargs, prompts[0].lengths)[0]
    identical({OUTPUT: torch.cat(prompts[0].outputs, dim=1)}, {OUTPUT: again}, "the first prompt again")


def _of_another_class(trial: Trial) -> None:
    trial = cached_trial(trial)
    kwargs = arguments(trial.inputs)
    lengths = cuts(kwargs["input_ids"].shape[1], trial.example.seed)
    listens = bool(trial.example.seed & 1)
    kind = _listening() if listens else _compressing()
    _both(
        trial,
        lambda model: in_chunks(model, kwargs, lengths, own_cache(model, kind))[0],
        f"a cache of the caller's own class, calls of {lengths} tokens",
        valid_in(trial.inputs, kwargs),
        fused=not listens,
    )
    bare = bool(trial.example.seed & 2)
    _both(
        trial,
        lambda model: in_chunks(model, kwargs, lengths, _with_layers_of_its_own(model, bare))[0],
        f"a cache {'of no kind, ' * bare}whose layers are of the caller's own class, calls of {lengths} tokens",
        valid_in(trial.inputs, kwargs),
        fused=False,
    )
    _of_no_library(trial, kwargs)


def _of_no_library(trial: Trial, kwargs: dict[str, Any]) -> None:
    """A prompt and a step on a cache that has the library's methods, and neither its class nor a list of layers."""
    tokens = kwargs["input_ids"].shape[1]
    lengths = [tokens - 1, 1] if tokens > 1 else [1]

    def decoded(model: nn.Module) -> Tensor:
        return in_chunks(model, kwargs, lengths, with_a_cross_cache(model, _Wrapping()))[0]

    asked_of_both(trial, "on a cache that has no layers", decoded, valid_in(trial.inputs, kwargs))


class _Wrapping:
    def __init__(self) -> None:
        from transformers import DynamicCache

        self.wrapped = DynamicCache()

    def __getattr__(self, name: str) -> Any:
        if name == "layers":
            raise AttributeError("this cache has no layers")
        return getattr(self.wrapped, name)


def _with_layers_of_its_own(model: nn.Module, bare: bool) -> Any:
    """The library's cache that grows, or one that is told nothing but its layers, of layers that give back something else than
    they were given."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Weighing(DynamicLayer):  # type: ignore[misc]
        def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(*args, **kwargs)
            return 1.25 * keys, 0.75 * values

    layers = [Weighing() for _ in range(cast(Any, model.config).num_hidden_layers)]
    if bare:
        return with_a_cross_cache(model, Cache(layers=layers))
    cache = own_cache(model)
    getattr(cache, "self_attention_cache", cache).layers = layers
    return cache


def _compressing() -> type:
    """A cache that gives back something else than it was given, as those do that quantise or merge."""
    from transformers import DynamicCache

    class Compressing(DynamicCache):  # type: ignore[misc]
        def update(self, keys: Tensor, values: Tensor, index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(keys, values, index)
            return 1.25 * keys, 0.75 * values

    return Compressing


def _listening() -> type:
    """A cache that reads whatever it is told beside keys and values; what that is depends on layer and release."""
    from transformers import DynamicCache

    class Listening(DynamicCache):  # type: ignore[misc]
        def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(*args, **kwargs)
            told = [*args[3:], *kwargs.values()]
            return keys, values * (1.0 + sum(len(one) for one in told if isinstance(one, dict)) / 8)

    return Listening


class _Prompt:
    """A prompt on its way through a replaced model."""

    def __init__(self, trial: Trial, inputs: Inputs) -> None:
        self.trial = trial
        self.kwargs = arguments(inputs)
        self.valid = valid_in(inputs, self.kwargs)
        self.lengths = cuts(self.kwargs["input_ids"].shape[1], trial.example.seed)
        with original_side("with a cache"):
            self.expected = in_chunks(trial.original, self.kwargs, self.lengths)[0]
        self.outputs: list[Tensor] = []
        self.cache: Any = None
        self.done = 0

    def call(self, model: nn.Module, turn: int) -> None:
        if turn < len(self.lengths):
            end = self.done + self.lengths[turn]
            output = model(**piece(self.kwargs, self.done, end), past_key_values=self.cache)
            self.cache, self.done = output.past_key_values, end
            self.outputs.append(output.last_hidden_state)

    def check(self, what: str) -> None:
        actual = {OUTPUT: torch.cat(self.outputs, dim=1)}
        same_outputs(self.trial, {OUTPUT: self.expected}, actual, self.valid, what)


EDITED_CACHE = Property(
    name="edited cache",
    statement="A cache whose rows its owner reorders, selects or repeats, whose latest token is taken back, or whose values are "
    "changed in place or of another dtype, goes on as with the original.",
    check=_edits,
    applies=cached,
    share=0.05,
)

STATIC_CACHE = Property(
    name="static cache",
    statement="A preallocated cache serves one prompt and, emptied, the next, and a second cache another, of thousands of places "
    "too, and a third a few tokens at once with a mask of their own, as with the original.",
    check=_static,
    applies=lambda case: case.static_cache,
    share=0.05,
)

FRESH_CACHE = Property(
    name="fresh cache",
    statement="Prompts with caches of their own do not reach into each other, though their calls alternate.",
    check=_fresh,
    applies=cached,
    share=0.05,
)

OTHER_CACHE = Property(
    name="cache of another class",
    statement="A cache of the caller's own class, of one that the library knows nothing of, or with layers of the caller's own, "
    "is asked for keys and values, and what it answers is attended to, as by the original.",
    check=_of_another_class,
    applies=cached,
    share=0.03,
)
