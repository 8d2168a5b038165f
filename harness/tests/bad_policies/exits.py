"""Leaves by the back door."""

from __future__ import annotations

import os
from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Leaves by the back door."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        os._exit(3)


class Case(TinyLlama):
    """The case beside the policy."""
