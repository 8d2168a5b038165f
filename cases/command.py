"""The ``harness`` command over this package's cases."""

from __future__ import annotations

from harness.cli import main as harness_main

from . import CASES


def main() -> None:
    harness_main(CASES)
