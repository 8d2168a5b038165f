"""A replacement that is ready to be made, and the refusal of one: what pages, and what they are read and built with, share.

Like the pages it imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .plans import Plan


class UnsupportedLayer(ValueError):
    """A layer that a policy must refuse, because a replacement would not compute the same function.

    Raised before anything has been changed. ``feature`` names what cannot be expressed.
    """

    def __init__(self, feature: str, *, layer: str = "layer") -> None:
        super().__init__(f"{layer}: {feature}")
        self.feature = feature
        self.layer = layer


class Swap(ABC):
    """A replacement that is ready to be made in place, and undone.

    ``execution`` is how it will run; ``shared`` names parameters of the module that other modules hold too. Whoever
    installs a swap may set both before.
    """

    execution: Plan = Plan.AUTO
    shared: frozenset[str] = frozenset()

    @abstractmethod
    def install(self) -> None:
        """Put the replacement in the module's place. Where that raises, the module is as it was."""

    def layout(self) -> tuple[tuple[str, ...], ...] | None:
        """The module's parameters, by checkpoint name from the module, as they will lie in memory once this is installed:
        those of a group in one storage, in this order. Whoever has them lie so before spares the copy. None: installing
        lays out what it likes."""
        return None

    @abstractmethod
    def revert(self) -> None:
        """Give the module back as it was, bit for bit."""


def qualified_name(cls: type) -> str:
    """``module:Class``, the way policies name the classes that they replace."""
    return f"{cls.__module__}:{cls.__qualname__}"
