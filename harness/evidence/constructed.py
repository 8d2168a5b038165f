"""How a case's model comes about, as source: the configuration and model it constructs, with their arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest import mock

from torch import nn

from ..case import Case, Example
from .literals import Source, call


@dataclass
class Construction:
    """The first call of a class's constructor."""

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    seen: bool = False

    def __str__(self) -> str:
        return call(self.cls.__name__, self.args, self.kwargs, "    ")

    @property
    def imported(self) -> str:
        """The shortest import that gives the class."""
        module = self.cls.__module__
        root = module.partition(".")[0]
        found = root if getattr(import_module(root), self.cls.__name__, None) is self.cls else module
        return f"from {found} import {self.cls.__name__}"


def construction(case: Case, example: Example) -> tuple[str, list[str]]:
    """The body of a function that constructs the model of ``example``, weights apart, and the imports it needs.

    Raises ``CannotWriteError`` where an argument has no form as source.
    """
    model = case.build(example)
    config = getattr(model, "config", None)
    made = [Construction(type(model))]
    if config is not None and not isinstance(config, dict) and _is_given(config, model):
        made.append(Construction(type(config)))
    with contextlib.ExitStack() as stack:
        for one in made:
            stack.enter_context(_recording(one))
        case.build(example)
    if len(made) == 1:
        return f"    model = {made[0]}.eval()\n", [made[0].imported]
    outer, inner = made
    outer.args = tuple(Source("config") if type(one) is inner.cls else one for one in outer.args)
    outer.kwargs = {key: Source("config") if type(one) is inner.cls else one for key, one in outer.kwargs.items()}
    lines = [f"    config = {inner}\n"]
    implementation = getattr(config, "_attn_implementation", None)
    if implementation is not None:
        lines.append(f"    config._attn_implementation = {implementation!r}\n")
    return "".join([*lines, f"    model = {outer}.eval()\n"]), sorted({outer.imported, inner.imported})


def _is_given(config: Any, model: nn.Module) -> bool:
    """Whether the configuration is an object that the model is given (diffusers makes its own of the arguments)."""
    return type(config).__module__.partition(".")[0] == type(model).__module__.partition(".")[0] and hasattr(
        config, "to_diff_dict"
    )


@contextlib.contextmanager
def _recording(into: Construction) -> Iterator[None]:
    honest: Any = into.cls.__init__  # type: ignore[misc]

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        first = type(self) is into.cls and not into.seen
        if first:
            into.seen, into.args, into.kwargs = True, args, kwargs
        try:
            honest(self, *args, **kwargs)
        except Exception:
            into.seen = into.seen and not first  # a constructor that raised made nothing; the case may try another way
            raise

    with mock.patch.object(into.cls, "__init__", init):
        yield
