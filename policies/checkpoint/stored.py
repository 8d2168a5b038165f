"""A safetensors checkpoint as it lies on disk: which entries there are, of which shape, in which file.

Opening one reads headers only. A file that is cut short, or whose header does not describe it, is found then, and not
when half of a model is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""What transformers and diffusers call a checkpoint of one file; one of several has ``.index.json`` behind the name."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SHOWN = 20


class CheckpointError(ValueError):
    """A checkpoint that does not give the model asked for. ``problems`` has one line each."""

    def __init__(self, where: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = list(self.problems[:SHOWN])
        if len(self.problems) > SHOWN:
            lines.append(f"and {len(self.problems) - SHOWN} more")
        many = f" {len(self.problems)} problems" if len(self.problems) > 1 else ""
        super().__init__(f"{where}:{many}" + ("\n  " if many else " ") + "\n  ".join(lines))


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint. ``dtype`` is safetensors' word for it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Stored:
    """A checkpoint: ``path`` as it was given, ``folder`` where its configuration would be, ``entries`` by name."""

    path: Path
    folder: Path
    entries: dict[str, Entry]

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the first floating-point entry."""
        found = (DTYPES.get(entry.dtype) for entry in self.entries.values())
        return next((dtype for dtype in found if dtype is not None and dtype.is_floating_point), None)


def open_checkpoint(path: str | Path) -> Stored:
    """The checkpoint in a folder, of one file, or behind an index. Raises ``CheckpointError``."""
    path = Path(path)
    main = _main_file(path)
    problems: list[str] = []
    promised = _weight_map(main, problems) if main.suffix == ".json" else {}
    files = sorted(set(promised.values())) if main.suffix == ".json" else [main]
    entries: dict[str, Entry] = {}
    for file in files:
        for entry in _headers(file, problems):
            if entry.name in entries:
                problems.append(f"{entry.name} is in {entries[entry.name].file.name} and in {file.name}")
            entries[entry.name] = entry
    if not problems:
        problems += [
            f"{name} is not in {file.name}, where {main.name} has it" for name, file in promised.items() if name not in entries
        ]
    if problems:
        raise CheckpointError(path, problems)
    return Stored(path, main.parent, entries)


def _main_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
            return path
        raise CheckpointError(path, ["neither a .safetensors file nor a .safetensors.index.json"])
    if not path.is_dir():
        raise CheckpointError(path, ["there is no such file or folder"])
    names = [name + suffix for name in FILES for suffix in ("", ".index.json")]
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        others = sorted(one.name for pattern in ("*.bin", "*.pt", "*.safetensors") for one in path.glob(pattern))
        besides = f"; it has {', '.join(others)}" if others else ""
        raise CheckpointError(path, [f"no safetensors checkpoint in this folder (looked for {', '.join(names)}){besides}"])
    return found


def _weight_map(index: Path, problems: list[str]) -> dict[str, Path]:
    try:
        files = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        strange = [str(file) for file in files.values() if Path(file).name != file]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{index.name} cannot be read as an index: {_one_line(error)}")
        return {}
    if strange:
        problems.append(f"{index.name} leads out of its folder: {strange[0]}")
        return {}
    return {name: index.parent / file for name, file in files.items()}


def _headers(file: Path, problems: list[str]) -> Iterable[Entry]:
    try:
        with safe_open(file, framework="pt") as opened:
            return [_entry(opened, name, file) for name in opened.keys()]  # noqa: SIM118  (it cannot be iterated)
    except (OSError, SafetensorError) as error:
        problems.append(f"{file.name} cannot be read: {_one_line(error)}")
        return []


def _entry(opened: Any, name: str, file: Path) -> Entry:
    part = opened.get_slice(name)
    return Entry(name, file, tuple(part.get_shape()), part.get_dtype())


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class Reader:
    """Reads entries, either way without a second copy of them in memory."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}

    def mapped(self, entry: Entry) -> Tensor:
        """The entry as the system maps the file: pages come when they are touched, and can be dropped again. Writing to
        it leaves the file alone."""
        if entry.file not in self._open:
            self._open[entry.file] = safe_open(entry.file, framework="pt")
        return self._open[entry.file].get_tensor(entry.name)

    def copy(self, pairs: Sequence[tuple[Entry, Tensor]]) -> None:
        """Write each entry into the tensor beside it, in the tensor's dtype. Files are mapped for that long only."""
        for file in dict.fromkeys(entry.file for entry, _ in pairs):
            with safe_open(file, framework="pt") as opened:
                for entry, target in pairs:
                    if entry.file == file:
                        target.copy_(opened.get_tensor(entry.name))

    def equal(self, one: Entry, other: Entry) -> bool:
        with safe_open(one.file, framework="pt") as first, safe_open(other.file, framework="pt") as second:
            return torch.equal(first.get_tensor(one.name), second.get_tensor(other.name))
