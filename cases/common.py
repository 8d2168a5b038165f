"""What the cases of transformers models share, under one name; it lives in the harness, for derived cases too."""

from harness.hf.case import TransformersCase, load
from harness.hf.inputs import (
    ACTIVATIONS,
    COMMON,
    EAGER_ONLY,
    EPS,
    HEAD_SIZES,
    HEADS,
    IMPLEMENTATION,
    INNER,
    MASK_2D,
    ODD_HEAD_SIZES,
    POSITIONS,
    SIZES,
    VOCABULARY,
    encoder_states,
    positions,
)

__all__ = [
    "ACTIVATIONS",
    "COMMON",
    "EAGER_ONLY",
    "EPS",
    "HEADS",
    "HEAD_SIZES",
    "IMPLEMENTATION",
    "INNER",
    "MASK_2D",
    "ODD_HEAD_SIZES",
    "POSITIONS",
    "SIZES",
    "VOCABULARY",
    "TransformersCase",
    "encoder_states",
    "load",
    "positions",
]
