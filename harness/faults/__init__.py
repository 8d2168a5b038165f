"""Seeded faults: the harness's exam. Mistakes that layer replacements have really made, made again on purpose and
counted: how many are noticed, by which property, after how many examples; and whether honest rewrites pass.

``run_faults`` examines cases in parallel; ``exam.examine`` one case in this process. Neither torch nor a model library
is imported before one of them is called.
"""

from __future__ import annotations

from .report import CaseReport, FaultReport, Outcome
from .runner import run_faults

__all__ = ["CaseReport", "FaultReport", "Outcome", "run_faults"]
