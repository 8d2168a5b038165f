"""A safetensors checkpoint as it lies on disk: which entries there are, of which shape, in which file.

Opening one reads headers only. A file that is cut short, or whose header does not describe it, is found then, and not
when half of a model is built.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    """One tensor of a checkpoint. ``dtype`` is safetensors' word for it, ``start`` its first byte in the file."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int


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

    def settings(self) -> dict[str, Any]:
        """The configuration beside the weights; empty where there is none that can be read."""
        try:
            return dict(json.loads((self.folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


def open_checkpoint(path: str | Path, variant: str | None = None) -> Stored:
    """The checkpoint in a folder, or of that folder's files the ``variant`` ("fp16"), of one file, or behind an index. Raises
    ``CheckpointError``."""
    path = Path(path)
    main = _main_file(path, variant)
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


def _main_file(path: Path, variant: str | None) -> Path:
    if path.is_file():
        if path.suffix == ".safetensors" or (".safetensors.index." in path.name and path.suffix == ".json"):
            return path
        raise CheckpointError(path, ["neither a .safetensors file nor a .safetensors.index.json"])
    if not path.is_dir():
        raise CheckpointError(path, ["there is no such file or folder"])
    names = [_of_variant(name + suffix, variant) for name in FILES for suffix in ("", ".index.json")]
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        others = sorted(one.name for pattern in ("*.bin", "*.pt", "*.safetensors") for one in path.glob(pattern))
        besides = f"; it has {', '.join(others)}" if others else ""
        raise CheckpointError(path, [f"no safetensors checkpoint in this folder (looked for {', '.join(names)}){besides}"])
    return found


def _of_variant(name: str, variant: str | None) -> str:
    """As both libraries write it: ``model.fp16.safetensors``, ``model.safetensors.index.fp16.json``."""
    rest, _, suffix = name.rpartition(".")
    return name if variant is None else f"{rest}.{variant}.{suffix}"


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
            starts = _starts(file)
            return [_entry(opened, name, file, starts[name]) for name in opened.keys()]  # noqa: SIM118  (it cannot be iterated)
    except (OSError, SafetensorError) as error:
        problems.append(f"{file.name} cannot be read: {_one_line(error)}")
        return []


def _starts(file: Path) -> dict[str, int]:
    """Where each entry of a file that safetensors has found to be sound begins, which it does not tell: the length of the
    header in eight bytes, the header, the values."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {name: 8 + length + one["data_offsets"][0] for name, one in header.items() if name != "__metadata__"}


def _entry(opened: Any, name: str, file: Path, start: int) -> Entry:
    part = opened.get_slice(name)
    return Entry(name, file, tuple(part.get_shape()), part.get_dtype(), start)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def mapped(entry: Entry) -> Tensor:
    """The entry as the system maps its part of the file: pages come when they are touched, can be dropped again, and go with
    the tensor. Writing to it leaves the file alone."""
    dtype = DTYPES[entry.dtype]
    if not math.prod(entry.shape):
        return torch.empty(entry.shape, dtype=dtype)
    size = math.prod(entry.shape) * dtype.itemsize
    values = np.memmap(entry.file, dtype=np.uint8, mode="c", offset=entry.start, shape=(size,))
    return torch.from_numpy(values).view(dtype).view(entry.shape)
