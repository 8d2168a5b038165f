"""The ``harness`` command over this package's cases."""

from __future__ import annotations

from harness.interrupts import end_at_once

from . import CASES


def main() -> None:
    end_at_once()
    from harness.cli import main as harness_main

    harness_main(CASES)
