"""Run records on disk.

Requirements this file must meet:

* A reader may trust every field's type, because reading validates it.
* A record is versioned. One of another version is refused with one line that names both versions.
* A record that is cut short or damaged is refused as a whole; it is never half believed.
* A wrong replacement produces infinities and NaNs, which JSON has not: they are written as ``NOT_FINITE``.
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .record import NOT_FINITE, SCHEMA_VERSION, Run

RUNS = Path("runs")
"""Where runs are put, and looked for by their ids, if nobody says otherwise."""
RECORD_NAME = "run.json"
JOURNAL_NAME = "journal.jsonl"
"""What an unfinished run has instead."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a damaged file may raise."""
Decoded = TypeVar("Decoded")


class RecordError(ValueError):
    """A run record cannot be read: missing, damaged, of another version, or not a record. One line, with the path."""


class _Named(msgspec.Struct):
    id: str


class _Version(msgspec.Struct):
    schema: int


def write(run: Run, folder: Path) -> Path:
    """Write ``run`` as ``folder/run.json``, atomically: the file is either absent or whole.

    Raises ``OSError`` when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / RECORD_NAME
    data = msgspec.json.encode(_finite(msgspec.to_builtins(run)))
    # On one line: half of an indented record is the space before raw samples, and a history reads a thousand of them.
    write_atomically(target, data + b"\n")
    return target


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return -NOT_FINITE if value < 0 else NOT_FINITE
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def write_atomically(target: Path, data: bytes) -> None:
    """Replace ``target`` by ``data`` in one step; a reader sees the old file or the new one, never a part.

    Raises ``OSError`` when the disk is full or the folder cannot be written; nothing is left behind then.
    """
    # Not tempfile: its files are for the owner alone, and reports are published.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as problem:
        temporary.unlink(missing_ok=True)
        if isinstance(problem, OSError):
            problem.filename, problem.filename2 = os.fspath(target), None
        raise


def read(path: Path) -> Run:
    """Read a record from a run folder or from the file itself.

    Raises ``RecordError``, one line, when there is no record, when it is damaged, or when its version is foreign.
    """
    file = path / RECORD_NAME if path.is_dir() else path
    return decode(read_bytes(file), Run, file)


def find(run: Path) -> Path:
    """``run``, or the folder below ``runs`` that has this name, or whose run has it as its id, which reports name it by.

    Raises ``RecordError`` where there is none.
    """
    if run.exists() or run != Path(run.name):
        return run
    if ("runs" / run).exists():
        return "runs" / run
    for path in sorted(RUNS.rglob(RECORD_NAME)):
        with contextlib.suppress(RecordError):
            if decode(read_bytes(path), _Named, path).id == run.name:
                return path.parent
    raise RecordError(f"{run}: no such folder, and no run in runs/ has this id; name the folder of the run")


def read_bytes(file: Path) -> bytes:
    """The contents of a record's file. Raises ``RecordError``, one line, when there are none to be had."""
    try:
        return file.read_bytes()
    except OSError as problem:
        if file.with_name(JOURNAL_NAME).exists():
            raise RecordError(
                f"{file.parent}: this run is not finished; the command that began it goes on with --resume {file.parent}"
            ) from None
        raise RecordError(f"{file}: no run record can be read here ({problem.strerror})") from None


def decode(data: bytes, kind: type[Decoded], origin: Path) -> Decoded:
    """Read a record's bytes as a ``Run``, or as any struct that takes a part of a run's fields.

    Raises ``RecordError``, one line that begins with ``origin``.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).schema
    except UNREADABLE as problem:
        raise RecordError(f"{origin}: not a run record ({_reason(problem)})") from None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{origin}: record version {version}, this harness reads version {SCHEMA_VERSION}; "
            "use the harness that wrote it, or run again"
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as problem:
        raise RecordError(f"{origin}: damaged run record ({_reason(problem)})") from None


def _reason(problem: Exception) -> str:
    return " ".join(str(problem).split())
