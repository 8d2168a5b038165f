"""Sizes of real models. Kernels work in blocks, of 16 to 128 tokens, of 32 to 1,024 elements of a row, and the usual examples
fill none of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Axis, Case, Inputs
from ..covering import chosen_by
from ..rounding.statistic import Run
from ..trial import Trial, Vacuous
from .base import Property, same_outputs
from .cache import OUTPUT, decoded_alike, in_chunks, with_cache
from .equality import layers_alike
from .inputs import has_tokens
from .masks import heads_of

LENGTHS = (33, 64, 95, 129, 190, 257, 700)
"""Tokens: whole blocks of every usual size, and blocks with a tail, of one token and of many."""
MANY = 2060
"""Tokens: more than the 1,024 or 2,048 that workspaces, tables and blocks of threads are made for. An example takes a second."""
PROMPT = 130
"""Tokens: linears and attention take another way for some hundred rows than for a few."""
BLOCKS_OF_A_GRID = 65_535
"""As many as a CUDA grid has in its second and third dimension; kernels take one for each head of each row."""
DEEP = 7
"""Layers: more than the usual examples have, and few enough that what rounding makes of the first stays small in the last."""
DEEPEST = 81
"""Layers: one more than a Llama of 70 billion parameters has."""
KERNEL_THREADS = 7
"""More than four, and a number by which nothing can be divided."""
PUBLISHED_WIDTH = 1024
PUBLISHED_HEADS = ((64, 1), (128, 4), (64, 8), (128, 1), (64, 4))
"""Elements of a head, and queries to a key/value head."""
PUBLISHED_WINDOWS = (64, 256)
PUBLISHED_CALLS = ((3, 320), (1, 512))
"""Rows and tokens: whole blocks of 64, and of every usual size."""
STEPS = 2
SEVERAL = 3
"""Tokens of a large layer: of a single one a faulty attention shows too little, whose one key has all the weight."""
BLOCKS = 100
"""Tokens of a large layer that fill a block of any usual size, and part of the next."""
ROWS = 2
"""Rows of those: as many as others of its calls have would take half a minute in half precision."""


def long_trial(trial: Trial) -> Trial:
    """The trial with one of ``LENGTHS``, the longest in two rows, or the largest below it that its original has positions for."""
    trial = trial.suited(has_tokens(trial.case))
    most = _random_by_values(trial).choice(LENGTHS)
    sized = (trial.vary(tokens=tokens) for tokens in reversed(LENGTHS) if tokens <= most)
    return that_runs((one.vary(batch=2) if one.example["tokens"] == LENGTHS[-1] else one for one in sized), trial)


def prompted(trial: Trial) -> Trial:
    """The trial with a single layer and one row of a prompt's tokens. Itself where its original has no positions for them."""
    return that_runs((trial.vary(tokens=PROMPT, batch=1, layers=1),), trial)


def large_trials(trial: Trial) -> tuple[Trial, ...]:
    """The trial with a single layer, and each axis that has large values at one of them; once more with others of them, in two
    rows of more tokens. Itself where its original cannot be as large."""
    chosen = _random_by_values(trial)
    trial = trial.at_least("tokens", SEVERAL)
    orders = {axis.name: chosen.sample(axis.large, len(axis.large)) for axis in trial.case.axes if axis.large}
    sizes: list[dict[str, Any]] = [{name: order[place % len(order)] for name, order in orders.items()} for place in (0, 1)]
    first, second = (trial.vary(**one, layers=1) for one in sizes)
    blocks = second.vary(**{"tokens": BLOCKS, **sizes[1], "batch": ROWS})
    return that_runs((first,), trial), that_runs((blocks, second), trial)


def largest_trials(trial: Trial) -> Iterator[tuple[Axis, Trial]]:
    """For each axis that has largest values, in any order, the trial with a single layer and one of them, such axes at
    their simplest otherwise. None where its original cannot be as large."""
    chosen = _random_by_values(trial)
    trial = trial.at_least("tokens", SEVERAL)
    axes = [axis for axis in trial.case.axes if axis.largest]
    plain = {axis.name: axis.simplest for axis in axes}
    for axis in chosen.sample(axes, len(axes)):
        one = trial.vary(**{**plain, axis.name: chosen.choice(axis.largest)}, layers=1)
        if _runs(one, trial):
            yield axis, one


def published_trial(trial: Trial) -> Trial:
    """The trial with a single layer as wide as many published ones, with heads as these have them, called with some hundred
    tokens. Itself where its original cannot be as large."""
    chosen = _random_by_values(trial)
    trial = trial.suited(has_tokens(trial.case))
    size, group = chosen_by(trial.example.seed, PUBLISHED_HEADS)
    batch, tokens = chosen.choice(PUBLISHED_CALLS)
    heads = PUBLISHED_WIDTH // size
    queries = {"heads": heads, "group": group, "queries_per_group": group}
    sizes = {"head_size": size, **queries, "kv_heads": heads // group, "groups": heads // group, "hidden": PUBLISHED_WIDTH}
    window = {"window": chosen.choice(PUBLISHED_WINDOWS)} if trial.example.values.get("window") else {}
    return that_runs((trial.vary(**sizes, **window, batch=batch, tokens=tokens, layers=1),), trial)


def _random_by_values(trial: Trial) -> random.Random:
    """Chooses by the values of the example's axes: the same configuration with other numbers is of the same size."""
    return random.Random(str(sorted(trial.example.values.items())))


def that_runs(sized: Iterable[Trial], otherwise: Trial) -> Trial:
    """The first of ``sized`` that its original runs, or else ``otherwise``. Raises ``OriginalFailed`` where one ran out of
    memory."""
    return next((one for one in sized if _runs(one, otherwise)), otherwise)


def _runs(trial: Trial, otherwise: Trial) -> bool:
    """Whether its original runs; where it does not, the evidence says what of ``trial``, other than of ``otherwise``, was not
    asked for."""
    other = [f"{name}={value}" for name, value in trial.example.values.items() if otherwise.example[name] != value]
    return trial.asked(", ".join(other), lambda: trial.expected_outputs) is not None


@contextlib.contextmanager
def by_several_threads() -> Iterator[None]:
    """Kernels share their work among threads, as they do where models are served; a process that checks lets them have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(KERNEL_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call_or_steps(trial: Trial, *, steps: bool) -> tuple[Run, str]:
    """A run of one call, or where ``steps`` are wanted and there is a cache of a prompt and steps, for which kernels of their own
    are written; and words for it, none for a call."""
    if not (steps and trial.case.caches(trial.example)):
        return trial.case.run, ""
    return lambda model, inputs: decoded(model, with_cache(inputs)), ", the last tokens decoded"


def decoded(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs for all tokens of ``inputs``, a call with a cache, the last of them one by one."""
    return {OUTPUT: in_chunks(model, inputs.kwargs, _last_alone(inputs))[0]}


def _last_alone(inputs: Inputs) -> list[int]:
    """Lengths of calls of which the last have a token each."""
    tokens = inputs.kwargs["input_ids"].shape[1]
    return [tokens - STEPS, *[1] * STEPS] if tokens > STEPS else [tokens]


def size_of(trial: Trial) -> str:
    """The values of the axes that a large trial has changed, for a message."""
    names = [axis.name for axis in trial.case.axes if axis.large]
    return ", ".join(f"{name}={trial.example[name]}" for name in names)


def has_lengths(case: Case) -> bool:
    """Whether single layers are replaced that are given sequences, and not images alone."""
    return case.layered and any(axis.name == "tokens" for axis in case.axes)


def has_rows(case: Case) -> bool:
    return case.layered and any(axis.name == "batch" for axis in case.axes)


def has_large_values(case: Case) -> bool:
    return any(axis.large for axis in case.axes)


def has_largest_values(case: Case) -> bool:
    return any(axis.largest for axis in case.axes)


def has_layers(case: Case) -> bool:
    return case.layered and any(axis.name == "layers" for axis in case.axes)


def _long(trial: Trial) -> None:
    trial = long_trial(trial)
    _alike(trial, f"{trial.example['tokens']} tokens")


def _published(trial: Trial) -> None:
    trial = published_trial(trial)
    _alike(trial, f"{trial.example['tokens']} tokens, {size_of(trial)}")


def _many(trial: Trial) -> None:
    trial = trial.suited(has_tokens(trial.case))
    trial = that_runs((trial.vary(tokens=MANY, batch=1, layers=1),), trial)
    with by_several_threads():
        _alike(trial, f"{trial.example['tokens']} tokens")


def _crowded(trial: Trial) -> None:
    """A single layer, as simple in other sizes as it can be: its tensors have some hundred thousand rows."""
    plain = {axis.name: axis.simplest for axis in trial.case.axes if axis.large}
    trial = trial.vary(**plain).at_least("tokens", 2)
    batch = BLOCKS_OF_A_GRID // heads_of(trial.example) + 1
    trial = that_runs((trial.vary(batch=batch, tokens=2, layers=1),), trial)
    with by_several_threads():
        _alike(trial, f"{trial.example['batch']} rows")


def _deep(trial: Trial) -> None:
    _alike(that_runs((trial.vary(layers=DEEP),), trial), f"{DEEP} layers")
    layers_alike(that_runs((trial.vary(layers=DEEPEST),), trial), f"{DEEPEST} layers: ")


def _large(trial: Trial) -> None:
    for one in large_trials(trial):
        _alike(one, size_of(one))


def _largest(trial: Trial) -> None:
    trials = [(one, f"{axis.name}={one.example[axis.name]}") for axis, one in largest_trials(trial)]
    if not trials:
        raise Vacuous("the original runs at none of its largest sizes")
    for one, what in trials:
        _alike(one, what)


def _alike(trial: Trial, what: str) -> None:
    if trial.case.layered:
        layers_alike(trial, f"{what}: ")
    model, inputs = trial.replaced.model, trial.fresh_inputs()
    same_outputs(trial, trial.expected_outputs, trial.run_replaced(model, inputs), inputs.valid, what)
    if trial.case.caches(trial.example):
        decoded_alike(trial, with_cache(inputs), _last_alone(inputs), f"{what}, the last tokens decoded")


LONG = Property(
    name="long sequences",
    statement="Sequences of up to 700 tokens give what the original gives, in one call and decoded.",
    check=_long,
    applies=has_lengths,
    share=0.03,
)
PUBLISHED = Property(
    name="published layers",
    statement=f"A layer {PUBLISHED_WIDTH:,} wide, with heads and groups as published ones have them, gives what the original "
    "gives on some hundred tokens, in one call and decoded.",
    check=_published,
    applies=has_lengths,
    share=0.02,
    least=4,
)
MANY_TOKENS = Property(
    name="two thousand tokens",
    statement="A sequence of more than two thousand tokens gives what the original gives, in one call and decoded, by kernels "
    "of several threads.",
    check=_many,
    applies=has_lengths,
    share=0.004,
    least=1,
)
MANY_ROWS = Property(
    name="many rows",
    statement="A batch of more rows, times heads, than a CUDA grid has blocks (65,535) gives what the original gives, in one "
    "call and decoded, by kernels of several threads.",
    check=_crowded,
    applies=has_rows,
    share=0.004,
    least=1,
)
MANY_LAYERS = Property(
    name="many layers",
    statement="A model of seven layers gives what the original gives, in one call and decoded; so does each of 81 layers.",
    check=_deep,
    applies=has_layers,
    share=0.008,
    least=2,
)
LARGE = Property(
    name="large layers",
    statement="A layer as wide as published ones, called with as many rows, gives what the original gives, in one call and "
    "decoded.",
    check=_large,
    applies=has_large_values,
    share=0.03,
)
LARGEST = Property(
    name="largest sizes",
    statement="Each size of a layer or a call, one at a time as the largest published models have it, gives what the "
    "original gives, in one call and decoded.",
    check=_largest,
    applies=has_largest_values,
    share=0.02,
    least=2,
)
