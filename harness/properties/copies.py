"""Copies of a replaced model: deep, pickled, and by state_dict in either direction."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Example
from ..trial import Disagreement, NothingToAsk, Trial, original_side
from .base import Property, identical, lively, same_outputs, snapshot
from .cache import OUTPUT, in_chunks, with_cache
from .lifecycle import same_classes, same_state
from .memory import reachable_storages

SLACK = 1.1
"""How much larger a saved replaced model may be than the saved original: its classes are written with it."""
OPTIONS = {"variant": "fp16", "max_shard_size": "30KB"}
"""Of ``save_pretrained``: what files are called, and how many there are."""


def _deepcopy(trial: Trial) -> None:
    handle = trial.replace(trial.copy())
    model = handle.model
    before = lively(trial, model)
    twin = copy.deepcopy(model)
    common = reachable_storages(model).keys() & reachable_storages(twin).keys()
    if common - _shared_by_copies(trial):
        raise Disagreement("a deep copy shares storage with the replaced model it was made from")
    identical(before, trial.run_replaced(twin, trial.fresh_inputs()), "a deep copy of the replaced model")
    another = copy.deepcopy(twin)
    _spoil(another)
    identical(before, trial.run_replaced(twin, trial.fresh_inputs()), "a copy, after its own copy's weights changed")
    if trial.example.seed % 2:
        _spoil(model)
        identical(before, trial.run_replaced(twin, trial.fresh_inputs()), "a copy, after the weights it was made from changed")
    handle.revert()
    same_classes(trial.original, model, "reverted after a deep copy was made")
    identical(before, trial.run_replaced(twin, trial.fresh_inputs()), "a copy, after the model it was made from was reverted")


def _shared_by_copies(trial: Trial) -> set[int]:
    """Storages that a deep copy of the original shares with it as well."""
    return reachable_storages(trial.original).keys() & reachable_storages(copy.deepcopy(trial.original)).keys()


def _spoil(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)


def _pickled(trial: Trial) -> None:
    """torch.save writes what pickle writes and each storage once."""
    _by_its_library(trial)
    model = trial.replaced.model
    before = lively(trial, model)
    try:
        allowed = len(_saved(trial.original))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as problem:
        raise NothingToAsk(f"the original cannot be pickled: {problem}") from None
    written = _saved(model)
    if len(written) > SLACK * allowed:
        raise Disagreement(f"saved, the replaced model takes {len(written)} bytes, the original {allowed}")
    loaded = torch.load(io.BytesIO(written), weights_only=False)
    same_state(model, loaded, "saved and loaded", strides=False)
    identical(before, trial.run_replaced(loaded, trial.fresh_inputs()), "the replaced model, saved and loaded")


def _by_its_library(trial: Trial) -> None:
    """What ``save_pretrained`` writes, where a model has it: weights, and a configuration that names the model's class."""
    if not hasattr(trial.original, "save_pretrained"):
        return
    options = OPTIONS if trial.example.seed % 2 else {}
    theirs, ours = (_written(one, options) for one in (trial.original, trial.replaced.model))
    same_state(trial.original, trial.replaced.model, "after save_pretrained", strides=False)
    if theirs.keys() != ours.keys():
        raise Disagreement(f"save_pretrained writes {', '.join(sorted(ours))}, and {', '.join(sorted(theirs))} of the original")
    for name, written in theirs.items():
        if ours[name] != written:
            raise Disagreement(f"save_pretrained writes another {name} than of the original")


def _written(model: Any, options: dict[str, str]) -> dict[str, Any]:
    """Contents of the files that ``save_pretrained`` writes, by their names, with ``options`` of its own."""
    with tempfile.TemporaryDirectory() as folder:
        with _without_progress():
            model.save_pretrained(folder, **options)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """A bar takes a semaphore of the system besides, which a process that is stopped does not give back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _saved(model: nn.Module) -> bytes:
    stream = io.BytesIO()
    torch.save(model, stream)
    return stream.getvalue()


def _state_dict(trial: Trial) -> None:
    stranger = trial.on(Example(trial.example.values, trial.example.seed + 1))
    _into_replaced(trial, stranger, assign=bool(trial.example.seed % 2))
    _from_replaced(trial, stranger)


def _into_replaced(trial: Trial, stranger: Trial, *, assign: bool) -> None:
    """The original's weights, loaded into a replaced model that had others: as who makes a model, replaces it and loads then."""
    expected = trial.expected_outputs  # an original may write to itself when it first runs: tables of rotary positions
    untouched = snapshot(trial.original)
    model = stranger.replace(_initialised(stranger.copy())).model
    trial.run_replaced(model, trial.fresh_inputs())
    decodes = trial.case.caches(trial.example) and trial.example["tokens"] > 1
    if decodes:
        _by_steps(trial, model)
    model.load_state_dict(trial.original.state_dict(), assign=assign)
    what = f"a replaced model that loaded the original's state_dict (assign={assign})"
    same_state(trial.original, model, what, strides=False)
    actual = trial.run_replaced(model, trial.fresh_inputs())
    same_outputs(trial, expected, actual, trial.inputs.valid, what)
    if decodes:
        decoded = _by_steps(trial, model)
        with original_side("with a cache"):
            expected = _by_steps(trial, trial.original)
        same_outputs(trial, expected, decoded, with_cache(trial.inputs).valid, f"{what}, decoding")
    identical(untouched, snapshot(trial.original), f"the original, after {what} ran")


def _initialised(model: nn.Module) -> nn.Module:
    """``model`` as one is that was just made: biases of zeros, gains of ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def _by_steps(trial: Trial, model: nn.Module) -> dict[str, Tensor]:
    """All tokens but the last in one call, and the last, with a cache, in another."""
    inputs = with_cache(trial.fresh_inputs())
    return {OUTPUT: in_chunks(model, inputs.kwargs, [trial.example["tokens"] - 1, 1])[0]}


def _from_replaced(trial: Trial, stranger: Trial) -> None:
    """The replaced model's weights, loaded into an original that had others."""
    model = stranger.original
    model.load_state_dict(copy.deepcopy(trial.replaced.model.state_dict()), assign=bool(trial.example.seed & 2))
    what = "an original that loaded the replaced model's state_dict"
    expected = trial.expected_outputs
    same_outputs(trial, expected, trial.case.run(model, trial.fresh_inputs()), trial.inputs.valid, what)


DEEPCOPY = Property(
    name="deep copy",
    statement="A deep copy of a replaced model computes the same, shares no storage with it, and outlives its revert.",
    check=_deepcopy,
    exact=False,
    share=0.04,
)

PICKLED = Property(
    name="pickle",
    statement="A replaced model that is saved and loaded computes bit for bit the same and takes no more room than the original; "
    "its library writes the same files of both, by the same options, and leaves the model as it was.",
    check=_pickled,
    exact=False,
    share=0.03,
)

STATE_DICT = Property(
    name="state dict",
    statement="State dicts go from original to replacement and back, copied or assigned, and what was loaded computes and "
    "decodes, whatever biases and gains the model was made with.",
    check=_state_dict,
    share=0.05,
)
