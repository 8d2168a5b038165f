"""Values as Python source that a human can read: numbers, containers, and tensors written out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

WIDTH = 100
MOST_ELEMENTS = 4096
"""Elements of one tensor that are still written out."""


class CannotWriteError(ValueError):
    """Something has no form as source; the message names it."""


def literal(value: Any, indent: str = "") -> str:
    """``value`` as source. ``indent`` is that of the line it begins on. Raises ``CannotWriteError``."""
    if isinstance(value, Tensor):
        return _tensor(value, indent)
    if value is None or type(value) in (bool, int, float, str):
        return repr(value) if not isinstance(value, float) or math.isfinite(value) else f"float({str(value)!r})"
    if isinstance(value, torch.dtype):
        return str(value)
    if type(value) is dict:
        return _wrapped("{", [f"{literal(k)}: {literal(v, indent + '    ')}" for k, v in value.items()], "}", indent)
    if type(value) in (list, tuple):
        before, after = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return _wrapped(before, [literal(one, indent + "    ") for one in value], after, indent)
    raise CannotWriteError(f"a {type(value).__name__} has no form as source")


def call(name: str, args: Iterable[Any], kwargs: dict[str, Any], indent: str = "") -> str:
    """A call of ``name`` as source; arguments that are strings of class ``Source`` are taken as they are."""
    parts = [_argument(one, indent) for one in args]
    parts += [f"{key}={_argument(one, indent)}" for key, one in kwargs.items()]
    return _wrapped(f"{name}(", parts, ")", indent)


class Source(str):
    """Text that is source already."""


def _argument(value: Any, indent: str) -> str:
    return str(value) if isinstance(value, Source) else literal(value, indent + "    ")


def _tensor(tensor: Tensor, indent: str) -> str:
    if tensor.numel() > MOST_ELEMENTS:
        raise CannotWriteError(f"a tensor of {tensor.numel()} elements is too long to write out")
    dtype = "" if tensor.dtype in (torch.int64, torch.bool) else f", dtype={tensor.dtype}"
    return f"torch.tensor({literal(tensor.tolist(), indent)}{dtype})"


def _wrapped(before: str, parts: list[str], after: str, indent: str) -> str:
    """On one line where it fits, or else filled lines indented by four."""
    one_line = before + ", ".join(parts) + after
    if len(indent) + len(one_line) <= WIDTH and "\n" not in one_line:
        return one_line
    lines, current = [], ""
    for part in parts:
        if current and ("\n" in part or "\n" in current or len(indent) + 6 + len(current) + len(part) > WIDTH):
            lines.append(current)
            current = ""
        current = f"{current} {part}," if current else f"{part},"
    inner = "\n".join(f"{indent}    {line}" for line in (*lines, current) if line)
    return f"{before}\n{inner}\n{indent}{after.lstrip(',')}"
