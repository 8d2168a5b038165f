"""What every process that checks needs; the clean process that they are forked from imports it once."""

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
