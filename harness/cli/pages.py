"""A run's page, and the run that it is shown against."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from reports import storage
from reports.record import Environment, Run, begun


def write_page(run: Run, folder: Path) -> Path:
    """Render ``index.html`` beside the record, against the last earlier run in the same place."""
    from reports.html import render_html

    page = folder / "index.html"
    storage.write_atomically(page, render_html(run, previous_run(run, folder)).encode())
    return page


class _Head(msgspec.Struct, frozen=True):
    """As much of a record as says whether it may be the one before; the rest is skipped unparsed."""

    id: str
    created: str
    profile: str
    environment: Environment


def previous_run(run: Run, folder: Path) -> Run | None:
    """The run to show ``run`` against: of the finished ones beside ``folder`` on the same machine in the same profile, begun
    no later, the latest that has something in common with it."""
    from reports.compare import comparable

    own = begun(run.created)
    if own is None:
        return None  # nobody knows what came before it
    candidates = []
    for path in folder.resolve().parent.glob(f"*/{storage.RECORD_NAME}"):
        with contextlib.suppress(storage.RecordError):
            head = storage.decode(storage.read_bytes(path), _Head, path)
            since = begun(head.created)
            same = head.environment.machine == run.environment.machine and head.profile == run.profile
            if same and head.id != run.id and since is not None and since <= own:
                candidates.append((since, path))
    for _, path in sorted(candidates, reverse=True):
        with contextlib.suppress(storage.RecordError):
            other = storage.read(path)
            if comparable(other, run):
                return other
    return None
