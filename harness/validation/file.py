"""A policy's file from outside the tree: what is in it, and which of it is meant."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from policies.base import AnatomyPolicy, DSPolicy

from ..case import Case
from ..process import SHARED
from ..suggest import suggestion


class UnusableFile(ValueError):
    """A file from which no policy can be taken; one line says why and what to do."""


class PolicyNotNamed(ValueError):
    """It is not said which policy of a file is meant, or one that is not there. One line, with those that are."""


@dataclass(frozen=True)
class Contents:
    """The policy that is meant, and the case beside it if there is one. Names only, so that it travels."""

    policy: str
    layer_classes: tuple[str, ...]
    case: str | None


def look(path: str, name: str | None) -> Contents:
    """What ``path`` holds. ``name`` chooses among several policies. Raises ``UnusableFile``, or
    ``PolicyNotNamed`` where the file is not what is wrong."""
    module = load_file(path)
    policies = _of_kind(module, DSPolicy)
    if not policies:
        raise UnusableFile(f"{path} has no policy: define a subclass of policies.base.AnatomyPolicy, or of DSPolicy, in it")
    if name is None and len(policies) > 1:
        raise PolicyNotNamed(f"{path} has {len(policies)} policies; say which: {path}:{policies[0]}, or {policies[1]}")
    if name is not None and name not in policies:
        hint = suggestion(name, policies, f"it has: {' '.join(policies)}", cutoff=0.4)
        raise PolicyNotNamed(f"{path} has no policy called {name}; {hint}")
    chosen = name or policies[0]
    policy = getattr(module, chosen)
    left = sorted(getattr(policy, "__abstractmethods__", ()))
    if left:
        raise UnusableFile(f"{chosen} does not define {', '.join(left)}")
    if issubclass(policy, AnatomyPolicy) and not hasattr(policy, "call"):
        raise UnusableFile(f"{chosen} has no call: say how its layer is called, call = CallConvention(...)")
    if isinstance(policy.layer_classes, str):
        raise UnusableFile(f'{chosen}.layer_classes has to be a tuple: ("{policy.layer_classes}",)')
    if not isinstance(policy.layer_classes, tuple | list) or not all(isinstance(one, str) for one in policy.layer_classes):
        raise UnusableFile(f'{chosen}.layer_classes has to be a tuple of names: ("module:Class",)')
    cases = [one for one in _of_kind(module, Case) if not inspect.isabstract(getattr(module, one))]
    if len(cases) > 1:
        raise UnusableFile(f"{path} has {len(cases)} cases, {cases[0]} and {cases[1]}: leave one of them")
    return Contents(chosen, tuple(policy.layer_classes), cases[0] if cases else None)


def _of_kind(module: ModuleType, kind: type) -> list[str]:
    """Classes of ``kind`` that ``module`` defines itself, in order."""
    return [
        name
        for name, one in vars(module).items()
        if inspect.isclass(one) and issubclass(one, kind) and one.__module__ == module.__name__
    ]


@functools.cache
def load_file(path: str) -> ModuleType:
    """The module in ``path``, imported once a process. Raises ``UnusableFile`` with the line on which it failed."""
    if not Path(path).is_file():
        raise UnusableFile(f"{path}: there is no such file")
    name = re.sub(r"\W", "_", f"validated_{Path(path).stem}", flags=re.ASCII)  # torch.save writes no other letters
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnusableFile(f"{path} is not a Python file")
    SHARED.look_at(_mentioned(path))  # as it is before somebody's file changes it
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:
        raise UnusableFile(f"{path} does not import: {in_one_line(problem, path)}") from None
    return module


def _mentioned(path: str) -> Iterator[str]:
    """Names in ``path`` that may be modules': imported there, or in strings such as ``module:Class``."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]


def in_one_line(problem: BaseException, path: str) -> str:
    """``problem`` with the line of ``path`` from which it came."""
    line = problem.lineno if isinstance(problem, SyntaxError) else _line_in(problem, path)
    where = f" (line {line})" if line else ""
    text = problem.msg if isinstance(problem, SyntaxError) else str(problem)
    return f"{type(problem).__name__}: {' '.join(text.split())[:200]}{where}"


def _line_in(problem: BaseException, path: str) -> int | None:
    frames = [frame for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == path]
    return frames[-1].lineno if frames else None
