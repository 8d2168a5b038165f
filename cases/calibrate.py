"""``python -m cases.calibrate``: make the rounding tier's calibration anew, on this package's cases."""

from __future__ import annotations

import sys

from harness.rounding.calibrate import main

from . import CASES

if __name__ == "__main__":
    sys.exit(main([entry.load() for entry in CASES if entry.unavailable is None]))
