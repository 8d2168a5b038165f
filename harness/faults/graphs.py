"""Faults of graph capture: what a replay takes for granted.

Models on a CPU are captured by the emulator, which follows the contract of CUDA graphs: for one property, and for every
property beside the honest variant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from policies.fused import diffusion, preallocated, state, trees
from policies.fused import graphs as fused_graphs
from policies.fused.attributes import AttributeWatch
from policies.fused.capture import EmulatorBackend, captured_by
from policies.fused.captured_call import CapturedCall
from policies.fused.graphs import Graphed
from policies.fused.trees import ContainerSpec, TensorSpec

from ..trial import Replacer
from .fault import Applies, Fault, Inject, Traits, seeded


@contextlib.contextmanager
def emulated(replacer: Replacer) -> Iterator[Replacer]:
    """Diffusion models are captured by the emulator."""
    with captured_by(EmulatorBackend):
        yield replacer


def _behind(graphed: type[Graphed]) -> Inject:
    """Calls that are captured are captured by ``graphed``."""

    @contextlib.contextmanager
    def inject(replacer: Replacer) -> Iterator[Replacer]:
        with mock.patch.object(diffusion, "Graphed", graphed), mock.patch.object(state, "Graphed", graphed):
            yield replacer

    return inject


class OneGraph(Graphed):
    """The first capture serves every call; inputs are broadcast into it."""

    def _replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        capture = next((one for one in self._kept.values() if isinstance(one, CapturedCall)), None)
        if capture is None:
            return super()._replayed(args, kwargs)
        leaves, _ = trees.flatten((args, {name: kwargs[name] for name in sorted(kwargs)}))
        for static, leaf in zip(capture.inputs, leaves, strict=False):
            static._base.copy_(leaf)
        capture.recording.replay()
        return trees.unflatten(capture.spec, iter(trees.clone_leaves(capture.leaves)))


class ShallowRefresh(Graphed):
    """Tensors inside containers keep the values of the first call."""

    def _make(self, key: Any, leaves: list[Tensor], spec: Any) -> Any:
        made = super()._make(key, leaves, spec)
        if isinstance(made, CapturedCall):
            for static, deep in zip(made.inputs, _depths(spec), strict=True):
                if deep > 2:
                    static.fill = lambda source: None  # type: ignore[method-assign]
        return made


def _depths(spec: Any, depth: int = 0) -> list[int]:
    """How deep in containers each tensor lies; arguments themselves lie at 2."""
    if isinstance(spec, TensorSpec):
        return [depth]
    children = spec.children if isinstance(spec, ContainerSpec) else ()
    return [one for child in children for one in _depths(child, depth + 1)]


class InputsNotCopied(Graphed):
    """The tensors of the first call are the graph's inputs: later calls write into them."""

    def _replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, spec = trees.flatten((args, {name: kwargs[name] for name in sorted(kwargs)}))
        first = self.__dict__.setdefault("_first", {}).setdefault(spec, leaves)
        result = super()._replayed(args, kwargs)
        for mine, leaf in zip(first, leaves, strict=True):
            if mine is not leaf:
                mine.copy_(leaf)
        return result


class OutputsNotCopied(Graphed):
    """Results are the graph's own memory, which the next call overwrites."""

    def _replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with mock.patch.object(fused_graphs, "clone_leaves", lambda leaves: leaves):
            return super()._replayed(args, kwargs)


class TwoBuffers(Graphed):
    """Results lie in two buffers by turns: the last but one is overwritten."""

    def _replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, spec = trees.flatten(super()._replayed(args, kwargs))
        turn = self.__dict__["_turn"] = 1 - self.__dict__.get("_turn", 0)
        kept = self.__dict__.setdefault("_buffers", {}).setdefault((spec, turn), leaves)
        for buffer, leaf in zip(kept, leaves, strict=True):
            buffer.copy_(leaf)
        return trees.unflatten(spec, iter(kept))


class _Blind(AttributeWatch):
    def changed(self) -> bool:
        return False


class StaleWeights(Graphed):
    """Captures stay when a weight is exchanged or moved."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._watch = _Blind(())


class _OfAnyClass(AttributeWatch):
    def changed(self) -> bool:
        self._classes = [*map(type, self._every)]
        return super().changed()


@contextlib.contextmanager
def _whatever_the_class(replacer: Replacer) -> Iterator[Replacer]:
    """Captures stay when a module becomes one of another class."""
    with mock.patch.object(fused_graphs, "AttributeWatch", _OfAnyClass):
        yield replacer


class FrozenTime(Graphed):
    """Tensors of fewer than two dimensions are taken for constants."""

    def _make(self, key: Any, leaves: list[Tensor], spec: Any) -> Any:
        made = super()._make(key, leaves, spec)
        if isinstance(made, CapturedCall):
            for static in made.inputs:
                if len(static.spec.shape) < 2:
                    static.fill = lambda source: None  # type: ignore[method-assign]
        return made


class NestedCapture(Graphed):
    """A wrapper that finds another graph at work gives up."""

    def _replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise RuntimeError("Cannot prepare for replay during capturing stage")


def _fault(id: str, rows: str, source: str, breaks: str, graphed: type[Graphed], *, applies: Applies) -> Fault:
    expects = ("captured graphs", "call twice")
    return seeded("graphs", id, rows, source, breaks, _behind(graphed), applies=applies, expects=expects)


def captures(traits: Traits) -> bool:
    """Whether the case's replacement is captured as a whole, by whatever plan."""
    return traits.has_policy("UNetPolicy", "VAEPolicy")


def _replays(traits: Traits) -> bool:
    return captures(traits) or traits.by_graphs


def _nests(traits: Traits) -> bool:
    """Whether calls that are captured bring tensors inside of something else; a layer's are its masks and positions."""
    return unet(traits) or traits.by_graphs


@contextlib.contextmanager
def _wherever_the_cache_is(replacer: Replacer) -> Iterator[Replacer]:
    """Of a static cache everything tells graphs apart but where it is."""
    honest = preallocated.form_of

    def without_places(cache: Any) -> Any:
        form = honest(cache)
        return form and tuple((name, value[1:] if isinstance(value, tuple) else value) for name, value in form)

    with mock.patch.object(preallocated, "form_of", without_places):
        yield replacer


def unet(traits: Traits) -> bool:
    """Cases whose models are UNets."""
    return traits.has_policy("UNetPolicy")


GRAPHS = (
    _fault(
        "F73 one graph",
        "F73 M22",
        "DeepSpeed-MII #132",
        "One graph serves every shape, and smaller batches are broadcast into it.",
        OneGraph,
        applies=_replays,
    ),
    _fault(
        "F74 shallow",
        "F74 M22",
        "DeepSpeed PR #8488",
        "Tensors in nested arguments keep the first call's values.",
        ShallowRefresh,
        applies=_nests,
    ),
    _fault(
        "M22 inputs",
        "M22",
        "stable-fast #141",
        "The first call's tensors are the graph's inputs.",
        InputsNotCopied,
        applies=_replays,
    ),
    _fault(
        "F78 outputs",
        "F78 M22",
        "TransformerEngine #2937",
        "A result is overwritten by the next call.",
        OutputsNotCopied,
        applies=_replays,
    ),
    _fault(
        "M22 two buffers",
        "M22 F78",
        "sglang #31852",
        "A result is overwritten by the next call but one.",
        TwoBuffers,
        applies=_replays,
    ),
    _fault(
        "M22 weights",
        "M22 F78",
        "pytorch #114844",
        "A graph goes on with weights that the model has no more.",
        StaleWeights,
        applies=captures,
    ),
    Fault(
        id="M22 class",
        rows=("M22", "F83", "F08"),
        source="Liger-Kernel #764",
        breaks="A graph goes on as before when a part of the model becomes one of another class.",
        seam="graphs",
        applies=captures,
        inject=_whatever_the_class,
        expects=("captured graphs",),
    ),
    _fault(
        "F74 time",
        "F74 M22",
        "DeepSpeed PR #8488",
        "Small tensors, a timestep among them, are frozen into the graph.",
        FrozenTime,
        applies=unet,
    ),
    _fault(
        "F77 nested",
        "F77",
        "DeepSpeed #2717",
        "Two levels capture, and the call raises.",
        NestedCapture,
        applies=_replays,
    ),
    Fault(
        id="F77 static cache",
        rows=("F77", "F78"),
        source="sglang #31852",
        breaks="A step of decoding goes on with the cache of the prompt that was there when it was captured.",
        seam="graphs",
        applies=lambda traits: traits.by_graphs and traits.case.static_cache,
        inject=_wherever_the_cache_is,
        expects=("static cache",),
    ),
)
"""Wrong graphs."""
