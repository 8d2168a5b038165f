"""Honest variants: rewrites that compute the same function another way, and must not be flagged.

Shapes: B batch, H heads, T queries, S keys, E head size, D inputs, N outputs.
"""

from __future__ import annotations

from .fault import Fault

HONEST: tuple[Fault, ...] = ()
"""Rewrites in which nothing is to be found."""
