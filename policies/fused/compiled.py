"""A fused layer's call by kernels that ``torch.compile`` makes for it: norms, rotary positions, residual sums and gates as one
kernel where plain operators need several. Made for one form of call, to be captured (see ``graphs``): each replay then saves
what they save, and nobody pays for looking up which kernels belong to a call.

Layers that are alike, as those of one model are, share what was compiled.

Kernels are chosen by rule: left to itself, Inductor times on the spot how the rows of a norm are cut and whether products are
padded, and a layer and its copy, compiled for other strides or in another process, then differ in their last bits.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from .transformer import FusedTransformerLayer
from .trees import NotCapturableError

_OPTIONS: dict[str, dict[str, Any]] = {"inductor": {"deterministic": True}}
_current: dict[Any, Callable[..., Any]] = {}
"""By compiler, what compiles until it has met as many forms as torch keeps of one function. Forms that are captured need it no
more, and the next ones are compiled of another function."""
_numbers = itertools.count()


class CompiledLayer:
    """``core`` by kernels that ``compiler``, a backend of ``torch.compile``, makes when a form is first met.

    For calls that have just been made plain: whatever is raised here is about compiling, and becomes ``NotCapturableError``.
    """

    def __init__(self, core: FusedTransformerLayer, compiler: str) -> None:
        self.core = core
        self.compiler = compiler
        self._used: set[Callable[..., Any]] = set()
        """Graphs launch kernels, and keep none of them."""

    def __call__(self, *args: Any) -> Any:
        try:
            try:
                return self._by(_current.get(self.compiler) or _another(self.compiler), args)
            except FailOnRecompileLimitHit:
                return self._by(_another(self.compiler), args)
        except Exception as problem:
            said = str(problem).strip().splitlines()[:2]  # the first names the compiler, where it is the compiler that failed
            raise NotCapturableError(f"cannot be compiled: {' '.join(said) or type(problem).__name__}") from problem

    def _by(self, compiled: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._used.add(compiled)
        return compiled(self.core, *args)


def _another(compiler: str) -> Callable[..., Any]:
    """torch counts the forms of a function by its code."""
    code = _call.__code__.replace(co_name=f"call_{next(_numbers)}")
    function = types.FunctionType(code, globals())
    options = _OPTIONS.get(compiler)
    _current[compiler] = torch.compile(function, fullgraph=True, dynamic=False, backend=compiler, options=options)
    return _current[compiler]


def _call(core: FusedTransformerLayer, *args: Any) -> Any:
    return core(*args)
