"""What to say of a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def suggestion(
    name: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6, written: Callable[[str], str] = str
) -> str:
    """``did you mean X?`` with the nearest of ``known``, as ``written``; ``otherwise`` where none is near.

    ``cutoff`` is the least likeness, from 0 to 1, that counts as near.
    """
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=cutoff)
    return f"did you mean {written(lower[near[0]])}?" if near else otherwise
