"""The command line. Whoever ships cases calls ``main`` with them; this room knows none."""

from .app import main

__all__ = ["main"]
