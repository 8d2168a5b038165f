"""What every limited process needs; the clean process that they are forked from imports it once."""

import transformers.modeling_utils

import harness.check
import harness.hf.rotary
import harness.validation.derive
import harness.validation.work
import policies.fused.layer

PRELOADED = (
    transformers.modeling_utils,
    harness.check,
    harness.hf.rotary,
    harness.validation.derive,
    harness.validation.work,
    policies.fused.layer,
)
