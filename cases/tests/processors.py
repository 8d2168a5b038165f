"""Tests of what a replacement does on other processors than this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from policies.fused import onednn

KINDS = ("_narrow", "_by_amd", "_by_amx")


@contextlib.contextmanager
def processor(*kinds: str) -> Iterator[None]:
    """Inside, choices between kernels are made as on a processor of these ``KINDS``, and of no other."""
    with contextlib.ExitStack() as stack:
        for kind in KINDS:
            stack.enter_context(mock.patch.object(onednn, kind, return_value=kind in kinds))
        yield
