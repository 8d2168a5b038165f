"""The properties: what has to hold of every replacement, each stated in one sentence.

A property is a function of a ``Trial``. It returns where it holds and raises ``Disagreement`` where it does not; errors of
the replaced side count as disagreement, errors of the original's do not.
"""

from __future__ import annotations

from .base import Property
from .cache import CACHE
from .contract import CONTRACT
from .equality import LAYER_EQUALITY, MODEL_EQUALITY
from .lifecycle import REVERT
from .refusal import REFUSAL

PROPERTIES: tuple[Property, ...] = (CONTRACT, LAYER_EQUALITY, MODEL_EQUALITY, CACHE, REVERT, REFUSAL)
BY_NAME = {one.name: one for one in PROPERTIES}

__all__ = ["BY_NAME", "PROPERTIES", "Property"]
