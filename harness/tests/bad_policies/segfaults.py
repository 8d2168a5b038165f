"""Reads where there is no memory."""

from __future__ import annotations

import ctypes
from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Reads where there is no memory."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        return ctypes.string_at(0)


class Case(TinyLlama):
    """The case beside the policy."""
