"""Speed of light: what a device reached at best, and rows held against it.

Ceilings are measured before the rows and after them, and the higher counts: load that passes by lowers a ceiling, and a
ceiling that is too low voids honest rows. So the fractions are worked out when the last measurement is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from reports.record import Ceilings, Timing

Key = TypeVar("Key")
TOLERANCE = 0.05
"""A figure may exceed a ceiling by this much before it voids its row: the ceiling is a measurement too."""


@dataclass(frozen=True, kw_only=True)
class SpeedOfLight:
    """What this device reached, in FLOP/s and bytes/s."""

    device: str
    gemm_flops: dict[str, float]
    """Best GEMM rate by dtype (``float32``, ``bfloat16``, ...), FLOP/s."""
    stream_bytes: dict[int, float]
    """Best rate of reading or copying, bytes/s, by working set in bytes; reads and writes both count."""
    warnings: tuple[str, ...]
    """What disturbed the measurement: ceilings that are too low void honest rows."""

    def record(self) -> Ceilings:
        """The part that the run record holds: memory outside all caches."""
        return Ceilings(
            device=self.device,
            gemm_flops=self.gemm_flops,
            copy_bytes=self.stream_bytes[max(self.stream_bytes)],
            warnings=self.warnings,
        )

    def memory_rate(self, working_set: float) -> float:
        """Ceiling in bytes/s for a call that moves ``working_set`` bytes: the largest measured set that is no larger."""
        return self.stream_bytes[max((size for size in self.stream_bytes if size <= working_set), default=min(self.stream_bytes))]


def best(measured: Sequence[SpeedOfLight]) -> SpeedOfLight:
    """The highest of each ceiling over at least one measurement."""
    return SpeedOfLight(
        device=measured[0].device,
        gemm_flops=_highest([one.gemm_flops for one in measured]),
        stream_bytes=_highest([one.stream_bytes for one in measured]),
        warnings=tuple(dict.fromkeys(warning for one in measured for warning in one.warnings)),
    )


def _highest(rates: Sequence[dict[Key, float]]) -> dict[Key, float]:
    return {key: max(one.get(key, 0.0) for one in rates) for key in dict.fromkeys(key for one in rates for key in one)}


def held_against(light: SpeedOfLight, row: Timing) -> Timing:
    """``row`` with the fractions of the ceilings that its subject reached at best; VOID where one is not possible.

    A row that was not timed, and a fraction whose count or ceiling is missing, stays as it is.
    """
    if not row.subject_seconds:
        return row
    seconds = min(row.subject_seconds)
    gemm = light.gemm_flops.get(row.dtype)
    flops = row.flops / seconds / gemm if row.flops and gemm else None
    moved = row.bytes / seconds / light.memory_rate(row.bytes) if row.bytes else None
    row = msgspec.structs.replace(row, flops_fraction=flops, bytes_fraction=moved)
    for what, fraction in (("GEMM rate", flops), ("memory rate", moved)):
        if fraction is not None and fraction > 1 + TOLERANCE:
            reason = (
                f"{fraction:.0%} of the {what} measured in this run is not possible: check that the call computes its whole "
                "output and that its operations and bytes are counted right, or measure again without other load"
            )
            return msgspec.structs.replace(row, verdict="VOID", reason=reason)
    return row
