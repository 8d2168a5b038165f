"""What is known of a case that was derived from a layer: data only, so that it travels between processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..case import Axis, Value

CHANNELS = 3
"""Colours of image models."""


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """All that is known of a derived case.

    ``fields`` maps a role to the configuration's own names for it; ``dropouts`` are fields that are switched on.
    ``kept_apart`` lists axis values that do not go together; ``dropped`` and ``undrawn`` say what could not be drawn, and why.
    """

    layer: str
    model: str
    config: str
    fields: dict[str, tuple[str, ...]]
    axes: tuple[Axis, ...]
    dropouts: tuple[str, ...] = ()
    undrawn: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    kept_apart: tuple[tuple[tuple[str, Value], ...], ...] = ()
    causal: bool = False
    causal_if_decoder: bool = False
    cached: bool = False
    image: bool = False
    sdpa: bool = True
    layers_of: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.layer.partition(":")[2]
