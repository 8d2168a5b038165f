"""Is killed from outside, as by a system that is out of memory."""

from __future__ import annotations

import os
import signal
from typing import Any

from harness.tests.bad_policies.tiny import Good, TinyLlama


class BadPolicy(Good):
    """Is killed from outside, as by a system that is out of memory."""

    @classmethod
    def read(cls, layer: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Case(TinyLlama):
    """The case beside the policy."""
