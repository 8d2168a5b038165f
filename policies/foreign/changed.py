"""What an adapter gives back: the same as ``policies.replace_module`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..replace import Left, Replaced

if TYPE_CHECKING:
    from torch import nn


class NothingChanged(Exception):
    """A replacement went through a model, said nothing, and left every part as it was."""


@dataclass(frozen=True)
class Changed:
    """A model that was changed or replaced as a whole; ``undo`` takes it back where that can be done."""

    model: nn.Module
    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...] = ()
    undo: Callable[[], object] | None = None

    def revert(self) -> None:
        if self.undo is None:
            raise NotImplementedError(f"{self.replaced[0].policy} cannot be taken back")
        self.undo()


def as_a_whole(model: nn.Module, by: str, undo: Callable[[], object] | None = None, *, was: nn.Module | None = None) -> Changed:
    """``model``, changed as one piece by ``by``; ``was`` is the original where another module took its place."""
    return Changed(model, (Replaced("", type(was or model).__name__, by),), undo=undo)
