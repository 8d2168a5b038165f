"""A run that may die at any moment and be taken up again.

Each finished piece of work is appended to ``journal.jsonl`` in the run's folder as one line, flushed before the next piece
begins. A line cut short by a crash is dropped, and its piece done again. When all is done the record is written whole and
the journal removed, so a folder holds either a record or what there is of one, never both.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from reports.record import Environment, ErrorBudget, NullLane, Timing, Verdict
from reports.storage import JOURNAL_NAME, RECORD_NAME
from reports.storage import read as read_record

from .timing.light import SpeedOfLight


class JournalError(ValueError):
    """A run cannot be started or resumed in a folder. One line, with the path."""


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order"):
    """The journal's first line: all that the run was asked to do, so that who goes on or reports need be told nothing."""

    id: str
    created: str
    command: str
    profile: str
    seed: int
    cases: tuple[str, ...]
    examples: int | None = None
    """Examples of a property whose share is 1, where the profile's own number does not hold."""
    properties: tuple[str, ...] = ()
    """Names of the properties that are checked; all of them where there are none."""
    check: bool = False
    bench: bool = False
    device: str = "cpu"
    budget: float = 0.0
    """Seconds that timing may take."""
    execution: str = "auto"
    """How replacements run, by the name of the plan."""

    @property
    def verb(self) -> str:
        """The command that does such a run."""
        return ("run" if self.bench else "check") if self.check else "bench"


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """Where the run was begun."""

    environment: Environment


class CheckDone(msgspec.Struct, frozen=True, kw_only=True, tag="check"):
    """One property judged. ``drawn`` lists (axis, value, count); ``pairs`` (axis, value, axis, value)."""

    verdict: Verdict
    drawn: list[tuple[str, Any, int]] = []
    pairs: list[tuple[str, Any, str, Any]] = []
    budget: ErrorBudget | None = None


class TimingDone(msgspec.Struct, frozen=True, kw_only=True, tag="timing"):
    key: str
    timings: tuple[Timing, ...]


class TimingsPlanned(msgspec.Struct, frozen=True, kw_only=True, tag="planned"):
    """What is to be timed, decided once: memory and speed may differ when the run goes on."""

    rates: dict[str, float]
    keys: tuple[str, ...]


class CeilingsDone(msgspec.Struct, frozen=True, kw_only=True, tag="ceilings"):
    """One measurement of the ceilings: before the rows, with the A/A lane, and after them."""

    light: SpeedOfLight
    null_lane: NullLane | None = None


Entry = Order | Begun | CheckDone | TimingsPlanned | TimingDone | CeilingsDone


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """``seconds`` is what the run had taken by then, over all the times that it was taken up."""

    seconds: float
    entry: Entry


@dataclass
class Contents:
    """What a run was asked for, and what it has done. ``seconds`` is what that took."""

    order: Order
    done: list[Entry]
    seconds: float = 0.0


class Journal:
    """The journal of the run in ``folder``."""

    def __init__(self, folder: Path, file: BinaryIO, contents: Contents) -> None:
        self.folder = folder
        self.contents = contents
        self._file = file
        self._begun = time.monotonic() - contents.seconds

    @property
    def order(self) -> Order:
        return self.contents.order

    @property
    def done(self) -> list[Entry]:
        return self.contents.done

    @classmethod
    def start(cls, folder: Path, order: Order) -> Journal:
        """A new run. Raises ``JournalError`` where the folder holds a run already or cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            see_free(folder)
            journal = cls(folder, _alone(folder), Contents(order, []))
            journal._write(order)
        except OSError as problem:
            raise JournalError(f"{folder}: cannot be written ({problem.strerror})") from None
        return journal

    @classmethod
    def resume(cls, folder: Path) -> Journal:
        """The unfinished run in ``folder``. Raises ``JournalError`` where there is none, it cannot be read, or another process is
        at work on it, and ``RecordError`` where a finished one is damaged; the journal is as it was then."""
        if not _begun(folder):
            here = "no run was begun in it" if folder.exists() else "there is no such folder"
            if (folder / RECORD_NAME).exists():
                read_record(folder)  # which says of a damaged one that it is
                here = "the run in it is finished"
            raise JournalError(f"{folder}: nothing to resume, {here}")
        file = _alone(folder, "r+b")
        try:
            contents, whole = _read(folder)
        except JournalError:
            file.close()
            raise
        file.truncate(whole)
        file.seek(whole)
        return cls(folder, file, contents)

    def append(self, entry: Entry) -> None:
        """Add a finished piece of work; it is on disk when this returns."""
        self._write(entry)
        self.done.append(entry)

    def _write(self, entry: Entry) -> None:
        self.contents.seconds = time.monotonic() - self._begun
        self._file.write(msgspec.json.encode(_Line(seconds=self.contents.seconds, entry=entry)) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Forget the journal: the record has been written."""
        (self.folder / JOURNAL_NAME).unlink(missing_ok=True)  # while it is ours alone
        self.close()


def see_free(folder: Path) -> None:
    """Raises ``JournalError`` where the folder holds a run already, finished or not."""
    if (folder / RECORD_NAME).exists():
        raise JournalError(f"{folder}: holds a finished run already; choose another folder")
    if _begun(folder):
        raise JournalError(f"{folder}: holds an unfinished run; go on with --resume, or choose another folder")


def _begun(folder: Path) -> bool:
    """Whether there is a journal with something in it: one that is empty was left by whoever died before the first entry."""
    path = folder / JOURNAL_NAME
    return path.exists() and path.stat().st_size > 0


def _alone(folder: Path, mode: Literal["ab", "r+b"] = "ab") -> BinaryIO:
    """The folder's journal, to append to: for one process at a time, as long as that lives."""
    file = (folder / JOURNAL_NAME).open(mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise JournalError(f"{folder}: another process is at work on this run") from None
    return file


def read(folder: Path) -> Contents:
    """What the unfinished run in ``folder`` has done so far, whoever is at work on it. Raises ``JournalError``."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Contents, int]:
    """Whole entries, and the length in bytes of what they take: a last line that was cut short is left out. Raises
    ``JournalError`` for a whole line that is none, rather than to give up what stands behind it."""
    path = folder / JOURNAL_NAME
    decoder = msgspec.json.Decoder(_Line)
    lines: list[_Line] = []
    length = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            lines.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise JournalError(
                f"{path}: line {number} is damaged, or another version's; take it out, or start a new run"
            ) from None
        length += len(line)
    if not lines or not isinstance(lines[0].entry, Order):
        raise JournalError(f"{path}: damaged from its first line; start a new run")
    return Contents(lines[0].entry, [line.entry for line in lines[1:]], lines[-1].seconds), length
