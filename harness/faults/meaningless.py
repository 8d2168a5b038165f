"""Rows of the fault list that no seeded fault stands for, each with its reason."""

from __future__ import annotations

from types import MappingProxyType

MEANINGLESS = MappingProxyType(
    {
        "F66": "reports of mismatches whose cause was never found: there is nothing to seed",
        "F81": "a benchmark's fault, not a replacement's: equality comes before timing here, and the timing room has a "
        "self-test of its own",
    }
)
"""Faults of tensor parallelism (F15, F20, F22, F23, F43), of quantised kernels (F67) and of training (F83) are seeded
by what they do to one rank, one dtype, one switch; the machinery around them is not here."""
