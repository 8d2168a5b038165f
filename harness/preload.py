"""What every process that checks needs; the clean process that they are forked from imports it once."""

import gc
from importlib import import_module

from harness.search import quiet

NEEDED = (
    "transformers.modeling_utils",
    "harness.check",
    "harness.hf.rotary",
    "harness.validation.derive",
    "harness.validation.work",
    "policies.fused.layer",
)

with quiet():  # libraries tell whoever imports them what they miss
    PRELOADED = tuple(map(import_module, NEEDED))
gc.freeze()  # who looks through all that is imported writes to it, and no longer shares its memory
