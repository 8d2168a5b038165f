"""Rows of the fault list that no seeded fault stands for, each with its reason."""

from __future__ import annotations

from types import MappingProxyType

MEANINGLESS = MappingProxyType(
    {
        "F81": "a benchmark's fault, not a replacement's: equality comes before timing here, and the timing room proves "
        "itself with its own self-test",
    }
)
