"""A fused layer's call by kernels that ``torch.compile`` makes for it: norms, rotary positions, residual sums and gates as one
kernel where plain operators need several. Made for one form of call, to be captured (see ``graphs``): each replay then saves
what they save, and nobody pays for looking up which kernels belong to a call.

Layers that are alike, as those of one model are, share what was compiled.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo import config

from .transformer import FusedTransformerLayer
from .trees import NotCapturableError

FORMS = 4096
"""Compiled forms of all layers in the process, more than any program has. torch's own bound is 8, for one model called in changing
forms."""

_ONE_AT_A_TIME = threading.RLock()
"""The bound is the whole process's: of two threads, one would put back the other's."""


@functools.cache
def _compiler(name: str) -> Callable[..., Any]:
    return torch.compile(FusedTransformerLayer.__call__, fullgraph=True, dynamic=False, backend=name)


class CompiledLayer:
    """``core`` by kernels that ``compiler``, a backend of ``torch.compile``, makes when a form is first met.

    For calls that have just been made plain: whatever is raised here is about compiling, and becomes ``NotCapturableError``.
    """

    def __init__(self, core: FusedTransformerLayer, compiler: str) -> None:
        self.core = core
        self.compiler = compiler

    def __call__(self, *args: Any) -> Any:
        try:
            with _ONE_AT_A_TIME, config.patch(recompile_limit=FORMS, accumulated_recompile_limit=FORMS):
                return _compiler(self.compiler)(self.core, *args)
        except Exception as problem:
            said = str(problem).strip().splitlines()[:2]  # the first names the compiler, where it is the compiler that failed
            raise NotCapturableError(f"cannot be compiled: {' '.join(said) or type(problem).__name__}") from problem
