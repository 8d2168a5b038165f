"""Holds a function and no policy."""


def read(layer: object) -> object:
    """Looks like a policy's method."""
    return layer
