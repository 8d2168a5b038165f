"""What a seeded fault is, and the few ways in which one gets into a replacement.

A fault is a mistake that somebody's layer replacement has really made, made again on purpose. It must reach every case
it can matter for without being written for any: so it changes the neutral description of a layer, or one function of
the fused computation, or the replace engine, or the harness's own machinery, for as long as a context manager is open.
Policies and fused code know nothing of it.

Where a fault can matter is derived, never listed: a misreading applies to a case if it changes any description among
the case's random layers; the other kinds say what they need in terms of ``Traits``.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import nn

from policies.anatomy import Attention, LayerAnatomy
from policies.base import AnatomyPolicy
from policies.calls import CallConvention

from ..case import Case, Value
from ..trial import Replacer
from .places import changed_places, computed_places

Seam = Literal["reading", "computing", "methods", "engine", "graphs", "harness", "honest"]
Inject = Callable[[Replacer], AbstractContextManager[Replacer]]
"""Opens a fault around a replacer; gives the replacer to use while it is open."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Traits:
    """What the random models of a case are made of: descriptions of their layers, and how those are called."""

    case: Case
    policies: frozenset[str]
    layers: tuple[nn.Module, ...]
    anatomies: tuple[LayerAnatomy, ...]
    calls: tuple[CallConvention, ...]
    joins: bool
    """Whether any replacement has parameters of its layer as views of one tensor, which depends on its plan too."""
    by_onednn: bool
    """Whether any replacement computes by oneDNN's linears, which its plan decides."""
    by_graphs: bool
    """Whether any replacement captures the calls of its layers, which its plan decides."""

    @cached_property
    def blocks(self) -> tuple[Attention, ...]:
        """Every self-attention block."""
        return tuple(one.attention for one in self.anatomies)

    @property
    def crosses(self) -> bool:
        return any(one.cross_attention is not None for one in self.anatomies)

    @property
    def layered(self) -> bool:
        return bool(self.anatomies)

    def has_policy(self, *names: str) -> bool:
        """Whether a policy of one of these names replaces this case's models."""
        return bool(self.policies & set(names))

    def values(self, axis: str) -> tuple[Value, ...]:
        """What the case draws on ``axis``; nothing where it has no such axis."""
        return next((one.values for one in self.case.axes if one.name == axis), ())

    def varies(self, axis: str) -> bool:
        return len(self.values(axis)) > 1

    @property
    def bool_masks(self) -> bool:
        """Whether attention is ever given a bool mask: transformers does so for sdpa, Megatron always."""
        return "sdpa" in self.values("attention") or any(call.true_means_masked for call in self.calls)

    @property
    def weighing_masks(self) -> bool:
        """Whether a mask may weigh keys, for each head in its own way."""
        return self.layered and "4d float" in self.values("mask")

    def any_block(self, wanted: Callable[[Attention], bool]) -> bool:
        return any(map(wanted, self.blocks))


Applies = Callable[[Traits], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fault:
    """One mistake. ``id`` begins with the row of the fault list that it comes from; ``rows`` are all it stands for.

    ``source`` is where the mistake was made; ``breaks`` says in one sentence what it does to a replacement. ``expects``
    names the properties most likely to notice, to be asked first: it saves time and decides nothing. ``canaries`` are
    faults that a faulty harness must be seen to miss, unless it gives itself away on an honest policy.
    """

    id: str
    rows: tuple[str, ...]
    source: str
    breaks: str
    seam: Seam
    applies: Applies
    inject: Inject
    expects: tuple[str, ...] = ()
    canaries: tuple[str, ...] = ()
    places: Callable[[LayerAnatomy], frozenset[str]] = lambda anatomy: frozenset()
    """Stages of a layer at which the fault shows first; none where it does not live in single stages."""
    passes: tuple[str, ...] = ()
    """Of an honest variant: properties that it may fail, because they speak of something else than its result."""

    @contextlib.contextmanager
    def opened(self, replacer: Replacer) -> Iterator[Replacer]:
        """``replacer`` with the mistake in it. ``torch.compile`` does not notice that a method was exchanged: what it made
        before, and what it makes meanwhile, is forgotten."""
        torch.compiler.reset()
        try:
            with self.inject(replacer) as faulty:
                yield faulty
        finally:
            torch.compiler.reset()


def always(traits: Traits) -> bool:
    """Every case, whatever it replaces."""
    return True


def layered(traits: Traits) -> bool:
    """Every case of Transformer layers."""
    return traits.layered


def seeded(seam: Seam, id: str, rows: str, source: str, breaks: str, inject: Inject, *, applies: Applies, **more: Any) -> Fault:
    """A fault at ``seam``, its rows in one string. ``more`` is of ``Fault``."""
    words = tuple(rows.split())
    return Fault(id=id, rows=words, source=source, breaks=breaks, seam=seam, applies=applies, inject=inject, **more)


Edit = Callable[[LayerAnatomy], LayerAnatomy]


def misreading(id: str, rows: str, source: str, breaks: str, edit: Edit, *, expects: tuple[str, ...] = ()) -> Fault:
    """A policy that describes its layer wrongly: ``edit`` makes the wrong description of a right one.

    ``edit`` returns its argument itself where there is nothing to get wrong. The mistake is made after the layer's
    parameters were accounted for: it is one that ``match or refuse`` does not see.
    """

    def make(honest: Any) -> Any:
        def init(self: AnatomyPolicy, client_module: Any, inference: bool = True) -> None:
            honest(self, client_module, inference)
            self.anatomy = edit(self.anatomy)

        return init

    return seeded(
        "reading",
        id,
        rows,
        source,
        breaks,
        patched((AnatomyPolicy, "__init__", make)),
        applies=lambda traits: any(edit(one) is not one for one in traits.anatomies),
        expects=expects,
        places=lambda anatomy: changed_places(anatomy, edit(anatomy)),
    )


Patch = tuple[Any, str, Callable[[Any], Any]]
"""A module or class, the name of a function in it, and what makes the wrong function of the right one."""


def patched(*patches: Patch) -> Inject:
    """Exchange functions while the fault is open. State that a wrong function keeps starts anew each time."""

    @contextlib.contextmanager
    def inject(replacer: Replacer) -> Iterator[Replacer]:
        with contextlib.ExitStack() as stack:
            for owner, name, make in patches:
                stack.enter_context(mock.patch.object(owner, name, make(getattr(owner, name))))
            yield replacer

    return inject


def wrapped(make: Callable[[Replacer], Replacer]) -> Inject:
    """Put something around the replacer itself."""

    @contextlib.contextmanager
    def inject(replacer: Replacer) -> Iterator[Replacer]:
        yield make(replacer)

    return inject


def miscomputing(
    id: str,
    rows: str,
    source: str,
    breaks: str,
    patch: Patch,
    *,
    applies: Applies = layered,
    expects: tuple[str, ...] = (),
) -> Fault:
    """A fused layer that computes wrongly from a right description."""
    return seeded(
        "computing",
        id,
        rows,
        source,
        breaks,
        patched(patch),
        applies=applies,
        expects=expects,
        places=lambda anatomy: computed_places(patch[0], anatomy),
    )


def misreplacing(
    id: str,
    rows: str,
    source: str,
    breaks: str,
    inject: Inject,
    *,
    applies: Applies = always,
    expects: tuple[str, ...] = (),
) -> Fault:
    """A replacement that finds, takes or gives back other layers than it should."""
    return seeded("engine", id, rows, source, breaks, inject, applies=applies, expects=expects)


_MISTAKES = (TypeError, NameError, AttributeError, ImportError)
_LOOKS_UP = "__getattr__"
_WRONGLY_CALLED = re.compile(r"\S+\.<locals>\.\S+\(\) (takes|got|missing) ")
"""What Python says of a call that a wrong function, made inside of another, does not take."""


def misfired(problem: BaseException) -> str | None:
    """In one line, how the code that seeds a fault failed by itself, so that nothing was seeded: a call that it does not take, or
    that the honest code takes no more, a name that is gone. None where ``problem`` is what the fault meant to raise, or what
    came of its work."""
    cause: BaseException | None = problem
    while cause is not None:
        frames = [one for one in traceback.extract_tb(cause.__traceback__) if one.name != _LOOKS_UP]
        if isinstance(cause, _MISTAKES) and frames and (_seeds(frames[-1]) or _WRONGLY_CALLED.match(str(cause))):
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
            return f"the fault itself does not work: {type(cause).__name__}: {cause} ({where})"
        cause = cause.__cause__ or cause.__context__
    return None


def _seeds(frame: traceback.FrameSummary) -> bool:
    """Whether a line of the fault bank was running, and not one that raises on purpose."""
    return Path(frame.filename).parent == Path(__file__).parent and not (frame.line or "").startswith("raise ")
