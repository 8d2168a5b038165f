"""The calibrated multiples: read, checked, and kept with their origin.

``calibration.json`` lies beside this file and is made by ``python -m cases.calibrate``. It is never edited by
hand, and a file that does not fit the schema is refused as a whole, with one line.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from .statistic import DTYPES, FLOOR

FILE = Path(__file__).with_name("calibration.json")
SCHEMA = 1

Ratio = Annotated[float, msgspec.Meta(ge=0.0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class CalibrationError(ValueError):
    """A calibration cannot be used: missing, damaged or made for another statistic. One line, with the path."""


class Multiple(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was found for one dtype. ``multiple`` is the tail's level, rounded up."""

    multiple: Positive
    examples: Count
    ratios: Count
    median: Positive
    worst: Positive
    worst_example: str
    threshold: Positive
    """Ratio beyond which the tail was fitted."""
    shape: Ratio
    scale: Positive
    asked_again: Annotated[int, msgspec.Meta(ge=0)]
    confirmed: Annotated[int, msgspec.Meta(ge=0)]
    """Of the examples with the largest ratios, how many were asked again with other numbers, and how many exceeded the
    multiple there as well."""
    worst_by_variant: dict[str, float]
    worst_by_case: dict[str, float]
    """The two last: largest ratio seen, by honest variant and by case."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Multiples by dtype, and where they come from."""

    schema: int
    seed: int
    created: str
    """UTC, ISO 8601."""
    seconds: float
    packages: dict[str, str]
    processor: str
    floor: Positive
    """``statistic.FLOOR`` when this was made: a multiple belongs to its statistic."""
    exceeded: Positive
    """Probability that one honest example exceeds its multiple, by extrapolation, before it is asked again."""
    dtypes: dict[str, Multiple]


def read(file: Path = FILE) -> Calibration:
    """Read and check ``file``. Raises ``CalibrationError``, one line that begins with the path."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Calibration)
    except OSError as problem:
        raise CalibrationError(f"{file}: no calibration can be read here ({problem.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        raise CalibrationError(f"{file}: not a calibration ({' '.join(str(problem).split())})") from None
    if found.schema != SCHEMA:
        raise CalibrationError(f"{file}: calibration version {found.schema}, this harness reads version {SCHEMA}")
    if found.floor != FLOOR:
        raise CalibrationError(f"{file}: made for a floor of {found.floor}, the statistic has {FLOOR}; make it again")
    missing = sorted(DTYPES.keys() - found.dtypes.keys())
    if missing:
        raise CalibrationError(f"{file}: no multiple for {', '.join(missing)}; make it again")
    return found


def write(calibration: Calibration, file: Path = FILE) -> None:
    """Write ``calibration``, indented. Raises ``OSError``."""
    data = msgspec.json.format(msgspec.json.encode(calibration), indent=1)
    temporary = file.with_suffix(".partial")
    temporary.write_bytes(data + b"\n")
    temporary.replace(file)


@cache
def multiple(dtype: str) -> float:
    """The multiple in force for ``dtype`` (``float32``, ``bfloat16``, ``float16``). Raises ``CalibrationError``."""
    return read().dtypes[dtype].multiple
