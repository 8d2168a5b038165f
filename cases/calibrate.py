"""``python -m cases.calibrate``: make the rounding tier's calibration anew, on this package's cases."""

from __future__ import annotations

import sys

from harness.rounding.calibrate import main

from . import CASES

if __name__ == "__main__":
    loaded = [entry.load() for entry in CASES if entry.unavailable is None]
    # Originals of whole diffusion models do not all run in every dtype: diffusers' upcast attention raises in bfloat16.
    sys.exit(main([case for case in loaded if case.layered]))
