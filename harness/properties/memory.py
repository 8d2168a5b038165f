"""Memory: no second copy of the weights, nothing kept call by call, and nothing read that was never written."""

from __future__ import annotations

import contextlib
import gc
import types
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from policies.fused.capture import Recording

from ..collector import collector_held_off
from ..trial import Disagreement, Trial, Vacuous, graphs_of, original_side, replacement_side
from .base import Property, cached, identical, lively, living, same_outputs
from .cache import cached_trial, decoded_alike, in_chunks, with_cache
from .calls import alike
from .inputs import other_inputs
from .sizes import that_runs

OUTSIDE = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    str,
    bytes,
    int,
    float,
    Recording,
)
"""Objects that lead out of a model into the program, or nowhere; and what computes again what was captured."""

CALLS = 3
"""Calls in which buffers may be made, and calls after them in which no more are; each with gradients as well, when no graph is
replayed."""
ROUNDS = 4
"""Of so many calls, until no new graph was captured in one."""
MANY = 264
"""Calls that a service has made in its first seconds, and tokens of an answer: more than 256, for which rings have room."""
LENGTHS, LAST = range(193, 33, -1), 16
"""Different lengths of calls, more than a bounded cache has room for; and how many of them, the shortest, are looked at, which
are of no other example: what a process has kept of an earlier call it keeps no second time."""
PLAIN = (Tensor, nn.Parameter)
"""Of other tensors not all have a memory that can be asked for, those of a compiler for one."""


def reachable_storages(model: nn.Module) -> dict[int, int]:
    """Bytes of every storage, by address, that is held by ``model`` however deep: by its parameters and buffers, and by
    any object that it or its modules refer to."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    waiting: list[Any] = [model]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, OUTSIDE):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor) and one.device.type != "meta":
            address, size = _memory(one)
            sizes[address] = size
        waiting += gc.get_referents(one)
    return {address: size for address, size in sizes.items() if size}


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where ``tensor`` lies and how many bytes that takes. An opaque tensor counts what its elements take, without the
    padding; one element that stands for a whole tensor counts nothing."""
    if tensor.is_mkldnn:
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    stands_in = storage.nbytes() == tensor.element_size() < tensor.nbytes
    return storage.data_ptr(), 0 if stands_in else storage.nbytes()


def bytes_held(model: nn.Module) -> int:
    """Bytes of all storages reachable from ``model``, each counted once."""
    return sum(reachable_storages(model).values())


def _storages(trial: Trial) -> None:
    handle = trial.replaced
    before = bytes_held(trial.original)
    model = handle.model
    _no_more_than(before, model, "after the replacement")
    trial.run_original(trial.inputs)
    after = max(before, bytes_held(trial.original))
    lively(trial, model)
    _no_more_than(after + _of_graphs(model), model, "after a call")
    _rewrite_one(model)
    trial.run_replaced(model, trial.fresh_inputs())
    _no_more_than(after + _of_graphs(model), model, "after a parameter was assigned")
    _let_go_of_its_cache(trial, model)
    handle.revert()
    _no_more_than(after, model, "after revert")
    _let_go(trial)


def _let_go_of_its_cache(trial: Trial, model: nn.Module) -> None:
    """The cache of a call goes with its last holder, at once where the original's does: what refers to itself waits for a
    collector, and a server's memory fills by then."""
    if not trial.case.caches(trial.example):
        return
    kwargs, lengths = with_cache(trial.fresh_inputs()).kwargs, [trial.example["tokens"]]
    with collector_held_off():
        with original_side("with a cache"):
            mine = weakref.ref(in_chunks(trial.original, kwargs, lengths)[1])
        its = weakref.ref(in_chunks(model, kwargs, lengths)[1])
        at_once, late = mine() is None, its() is not None
    if late:
        gc.collect()
    if its() is not None:
        raise Disagreement("the cache of a call stays alive when nobody holds it")
    if late and at_once:
        raise Disagreement("the cache of a call waits for a collector, where the original's goes with its last holder")


@contextlib.contextmanager
def what_is_there_passed_over() -> Iterator[None]:
    """Inside, whoever looks through all objects sees those alone that were made inside: the libraries have a million."""
    before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not before:  # whoever has passed them over so far goes on so
            gc.unfreeze()


def _let_go(trial: Trial) -> None:
    """A replaced model, reverted or not, that nobody holds any more goes, and its parameters with it."""
    with what_is_there_passed_over():
        handle = trial.replace(trial.copy())
        trial.run_replaced(handle.model, trial.fresh_inputs())
        if trial.example.seed % 2:
            handle.revert()
        left = [weakref.ref(one) for one in (handle.model, *handle.model.parameters())]
        del handle
        gc.collect()
        alive = sum(one() is not None for one in left)
        if alive:
            raise Disagreement(f"{alive} of {len(left)}, a replaced model and its parameters, stay alive when nobody holds them")


def _of_graphs(model: nn.Module) -> int:
    """What captured graphs are given and give back has a place of its own, which no original needs."""
    return sum(one.held_bytes for one in graphs_of(model))


def _flat(trial: Trial) -> None:
    _same_form(trial)
    if trial.case.layered:
        _new_lengths(trial)


def _same_form(trial: Trial) -> None:
    model = trial.replaced.model
    rounds = [[alike(trial, number * CALLS + salt) for salt in range(CALLS)] for number in range(ROUNDS)]
    last = None
    with what_is_there_passed_over():
        for calls in rounds:
            for inputs in calls:
                trial.run_replaced(model, inputs)
                with torch.enable_grad():
                    trial.run_replaced(model, inputs)
            captures, held = sum(one.captures for one in graphs_of(model)), _new_bytes()
            if last is not None and last[0] == captures:
                if held > last[1]:
                    raise Disagreement(f"{CALLS} calls more leave {held - last[1]} bytes of tensors more alive")
                return
            last = captures, held
    raise Vacuous(f"in each of {ROUNDS} rounds of calls a graph was captured that stays")


def _new_lengths(trial: Trial) -> None:
    """A call of each length. What is kept of a length for the next call of the same is dropped at last for
    that of another, which is shorter; what is kept of every length is more after each call."""
    trial = that_runs((trial.vary(tokens=LENGTHS[0], batch=1, layers=1),), trial)
    if trial.example.values.get("tokens") != LENGTHS[0]:
        return
    model, held = trial.replaced.model, []
    with what_is_there_passed_over():
        for tokens in LENGTHS:
            trial.run_replaced(model, other_inputs(trial, tokens, tokens=tokens, batch=1))
            if tokens in LENGTHS[-LAST:]:
                held.append(_new_bytes())
    grown = sum(before < after for before, after in pairwise(held))
    if grown == LAST - 1:
        raise Disagreement(f"something is kept of every length, {(held[-1] - held[0]) // (LAST - 1)} bytes of each")


def _many_calls(trial: Trial) -> None:
    """What counts its calls and then computes otherwise (a kernel chosen after some trials, a buffer that wraps around) gives
    another result in the end."""
    model, inputs = trial.replaced.model, trial.fresh_inputs()
    first = living(trial.run_replaced(model, inputs), trial.inputs.valid)
    same_outputs(trial, trial.expected_outputs, first, trial.inputs.valid, "the first call")
    for _ in range(MANY - 1):
        last = trial.run_replaced(model, inputs)
    identical(first, last, f"the first call and the {MANY}th")
    if cached(trial.case):
        trial = cached_trial(trial)
        trial = that_runs((trial.vary(tokens=MANY, batch=1, layers=1),), trial)  # where there are positions for as many
        steps = [1] * trial.example["tokens"]
        decoded_alike(trial, with_cache(trial.fresh_inputs()), steps, f"{len(steps)} tokens decoded one by one")


def _new_bytes() -> int:
    """Bytes of all storages that a tensor made since ``gc.freeze`` refers to, whoever holds it."""
    gc.collect()
    sizes: dict[int, int] = {}
    for one in gc.get_objects():
        if type(one) in PLAIN and one.device.type != "meta":
            with contextlib.suppress(NotImplementedError):  # what torch.func wraps has no memory of its own
                sizes.update((_memory(one),))
    return sum(sizes.values())


def _rewrite_one(model: nn.Module) -> None:
    """Assign every bias and weight of one module anew, which a replacement must follow without keeping the old ones."""
    owner = next(module for module in model.modules() if type(module).__name__.endswith(("Linear", "Conv1D", "Conv2d")))
    for name, parameter in list(owner.named_parameters(recurse=False)):
        setattr(owner, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))


def _no_more_than(allowed: int, model: nn.Module, when: str) -> None:
    held = bytes_held(model)
    if held > allowed:
        raise Disagreement(f"{when}, {held} bytes of tensors are alive where the original holds {allowed}")


def _poisoned(trial: Trial) -> None:
    """Under torch's deterministic mode, which fills new memory and refuses what is not deterministic, where it does not refuse
    the original."""
    what = "deterministic algorithms alone"
    with _deterministic(filled=False):
        found = trial.asked(what, lambda: trial.run_original(trial.inputs))
    expected = living(trial.expected_outputs if found is None else found, trial.inputs.valid)
    with _deterministic(filled=True, warn_only=found is None), replacement_side(f"asked for {what}"):
        actual = trial.run_replaced(trial.replace(trial.copy()).model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, "with NaN in all memory that was not initialised")
    identical(actual, trial.run_replaced(trial.replaced.model, trial.fresh_inputs()), "with and without NaN in new memory")


@contextlib.contextmanager
def _deterministic(*, filled: bool, warn_only: bool = False) -> Iterator[None]:
    """Torch's deterministic mode; new memory is ``filled`` with NaN (integers with their largest value), or left as it is."""
    switch: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    switch.fill_uninitialized_memory = filled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        switch.fill_uninitialized_memory = before[1]


STORAGES = Property(
    name="storages",
    statement="Replaced, called, given new weights, reverted: no more bytes of tensors are held than by the original, and none "
    "when nobody holds the model, nor a cache that nobody holds, which goes as soon as the original's.",
    check=_storages,
    exact=False,
    share=0.05,
)

FLAT = Property(
    name="flat memory",
    statement="Called again and again with other values, a replacement leaves no more tensors alive than its first calls did, "
    "and of calls of every length not something of each.",
    check=_flat,
    share=0.01,
    least=2,
)

MANY_CALLS = Property(
    name="many calls",
    statement=f"The {MANY}th call gives bit for bit what the first gave; the {MANY}th token decoded on one cache is the "
    "original's.",
    check=_many_calls,
    share=0.004,
    least=1,
)

POISON = Property(
    name="uninitialised memory",
    statement="With NaN in all memory that nobody has written, the replacement computes the same, by deterministic algorithms "
    "alone where the original does.",
    check=_poisoned,
    share=0.03,
)
