"""The properties: what has to hold of every replacement, each stated in one sentence.

A property is a function of a ``Trial``. It returns where it holds and raises ``Disagreement`` where it does not; errors of
the replaced side count as disagreement, errors of the original's do not.
"""

from __future__ import annotations

from .base import Property
from .cache import CACHE
from .cache_edits import EDITED_CACHE, FRESH_CACHE, STATIC_CACHE
from .calls import INTERLEAVED, ORDER, REPEAT, SHAPES, UNTOUCHED
from .contract import CONTRACT
from .equality import LAYER_EQUALITY, MODEL_EQUALITY
from .lifecycle import REVERT
from .metamorphic import CAUSALITY, PADDING, ROWS
from .refusal import REFUSAL

PROPERTIES: tuple[Property, ...] = (
    CONTRACT,
    LAYER_EQUALITY,
    MODEL_EQUALITY,
    CACHE,
    EDITED_CACHE,
    STATIC_CACHE,
    FRESH_CACHE,
    ROWS,
    PADDING,
    CAUSALITY,
    REPEAT,
    SHAPES,
    ORDER,
    INTERLEAVED,
    UNTOUCHED,
    REVERT,
    REFUSAL,
)
BY_NAME = {one.name: one for one in PROPERTIES}

__all__ = ["BY_NAME", "PROPERTIES", "Property"]
