"""What every limited process needs; the clean process that they are forked from imports it once."""

import transformers.modeling_utils  # noqa: F401
