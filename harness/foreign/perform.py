"""Judging adapters: every piece in a process of its own, since foreign code leaves traces and may take its process along."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from policies.foreign.catalogue import ADAPTERS, Adapter

from ..environment import installed
from ..interrupts import heed
from ..pool import Lost
from ..registry import CaseEntry
from ..suggest import suggestion
from ..validation.isolation import Limits, isolated
from .report import Judged, Report

SECONDS = 300.0
"""That one policy may take."""
LIBRARIES = ("torch", "transformers", "diffusers")

Found = tuple[Judged, dict[str, str]]
"""A verdict, and the scripts that go with it by file name."""


class UnknownAdapter(ValueError):
    """An adapter was named that does not exist; the message suggests the nearest."""


def choose(names: Iterable[str]) -> tuple[Adapter, ...]:
    """The adapters of these names, or all. Raises ``UnknownAdapter``."""
    wanted, known = list(names), {one.name: one for one in ADAPTERS}
    for name in wanted:
        if name not in known:
            hint = suggestion(name, known, f"there are: {' '.join(known)}")
            raise UnknownAdapter(f"no adapter is called {name!r}; {hint}")
    return tuple(one for one in ADAPTERS if not wanted or one.name in wanted)


def perform(
    adapter: Adapter, entries: tuple[CaseEntry, ...], *, examples: int, seed: int, progress: Callable[[Judged], None]
) -> tuple[Report, dict[str, str]]:
    """Judge one adapter. Returns its report, and its scripts by file name."""
    heed()
    why = adapter.unavailable
    if why is not None:
        return Report(adapter=adapter.name, unavailable=why), {}
    tasks = [(adapter.name, piece, entries, examples, seed) for piece in pieces(adapter)]
    found: dict[str, Found] = {}
    with isolated(Limits(seconds=SECONDS), fresh=True) as pool:
        for task, result in pool.run_all(judge_piece, tasks):
            found[task[1]] = result if not isinstance(result, Lost) else (_lost(task[1], result), {})
            progress(found[task[1]][0])
    ordered = [found[piece] for piece in pieces(adapter)]
    scripts = {name: text for _, some in ordered for name, text in some.items()}
    versions = installed((adapter.distribution, *LIBRARIES))
    return Report(adapter=adapter.name, versions=versions, rows=tuple(row for row, _ in ordered)), scripts


def pieces(adapter: Adapter) -> tuple[str, ...]:
    """What is judged apart: a set's policies, or the cases that a replacement fits."""
    if adapter.module is not None:
        return adapter.cases
    from .generic import GENERIC_ROWS
    from .rows import ROWS

    return (*(row.policy for row in ROWS), *(row.policy for row in GENERIC_ROWS))


def judge_piece(task: tuple[str, str, tuple[CaseEntry, ...], int, int]) -> Found:
    """One piece, in the process that it was given."""
    from .deepspeed import judge
    from .generic import GENERIC_ROWS, judge_generic
    from .rows import ROWS
    from .whole import judge_whole

    name, piece, entries, examples, seed = task
    adapter = next(one for one in ADAPTERS if one.name == name)
    if adapter.module is not None:
        entry = next(one for one in entries if one.name == piece)
        return judge_whole(adapter, entry.load(), examples=examples, seed=seed), {}
    for row in ROWS:
        if row.policy == piece:
            return judge(row, entries, examples=examples, seed=seed)
    generic = next(row for row in GENERIC_ROWS if row.policy == piece)
    case = next(entry for entry in entries if entry.name == generic.case).load()
    return judge_generic(generic, case, examples=examples, seed=seed)


def _lost(piece: str, loss: Lost) -> Judged:
    words = f"not judged: {loss}"
    return Judged(policy=piece, layer="?", verdict=words, lost=True)
