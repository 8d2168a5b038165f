"""What several commands print alike."""

from __future__ import annotations

import msgspec


def print_json(data: object) -> None:
    """``data`` on stdout, for scripts."""
    print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
