"""Which release of a library is installed, for what differs between the releases that are served."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version


def at_least(distribution: str, least: str) -> bool:
    """Whether ``distribution`` is installed in release ``least`` or above; a pre-release counts as its release."""
    try:
        return _numbers(version(distribution)) >= _numbers(least)
    except PackageNotFoundError:
        return False


def _numbers(release: str) -> tuple[int, ...]:
    """``5.22.0.dev0`` -> (5, 22)."""
    return tuple(int(one) for one in re.findall(r"\d+", release)[:2])
