"""Reading these rooms' source: where a name is defined, and what a definition refers to.

Places are bytes of a module's text, so that edits leave everything else as it stands, comments included.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from .literals import CannotWriteError

ROOMS = ("harness", "cases")
DROPPED = frozenset(
    {"strategy", "refusals", "changed_layers", "_tampered", "layer_extras", "filled_cache"}
    | {"workloads", "workloads_on", "workload_module", "workload_call", "workload_step", "workload_config"}
)
"""Members of a case that no example needs."""

Key = tuple[str, str]
"""Module and name of a definition."""


class Page:
    """A module's source and its top-level definitions."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.source = inspect.getsource(importlib.import_module(module))
        self.starts = [0]
        for line in self.source.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.definitions: dict[str, Any] = {}
        for node in ast.parse(self.source).body:
            for name in defined(node):
                self.definitions[name] = node

    def offset(self, line: int, column: int) -> int:
        """Place in the source's bytes: columns of the syntax tree count bytes."""
        return self.starts[line - 1] + column

    def end(self, node: Any) -> int:
        return self.offset(node.end_lineno, node.end_col_offset)

    def cut(self, first: int, last: int, edits: list[tuple[int, int, str]], dropped: list[tuple[int, int]]) -> str:
        """Lines ``first`` to ``last`` with ``edits`` made and the ``dropped`` line ranges left out."""
        start, data = self.starts[first - 1], self.source.encode()[self.starts[first - 1] : self.starts[last]]
        changes = [(a - start, b - start, text.encode()) for a, b, text in edits]
        gone = [(self.starts[a - 1] - start, self.starts[b] - start) for a, b in dropped]
        changes = [one for one in changes if not any(a <= one[0] < b for a, b in gone)]
        changes += [(a, b, b"") for a, b in gone]
        for a, b, replacement in sorted(changes, reverse=True):
            data = data[:a] + replacement + data[b:]
        return textwrap.dedent(data.decode()).rstrip()


@cache
def page_of(module: str) -> Page:
    return Page(module)


def defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (one.id for target in node.targets for one in _single(target) if isinstance(one, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (one.asname or one.name.partition(".")[0] for one in node.names)


def _single(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, ast.Tuple) else [target]


def resolve(module: str, name: str) -> Key | str:
    """Where ``name`` of ``module`` is defined: a key in these rooms, or the import statement that gives it."""
    node = page_of(module).definitions.get(name)
    if node is None:
        raise CannotWriteError(f"{module} has no definition of {name} at its top level")
    if isinstance(node, ast.Import | ast.ImportFrom):
        return _imported(module, node, name)
    return module, name


def _imported(module: str, node: ast.Import | ast.ImportFrom, name: str) -> Key | str:
    alias = next(one for one in node.names if (one.asname or one.name.partition(".")[0]) == name)
    renamed = f" as {alias.asname}" if alias.asname else ""
    if isinstance(node, ast.Import):
        return f"import {alias.name}{renamed}"
    origin = _absolute(module, node)
    if origin.partition(".")[0] not in ROOMS:
        return f"from {origin} import {alias.name}{renamed}"
    return resolve(origin, alias.name)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    package = importlib.import_module(module).__spec__
    assert package is not None
    base = module if package.submodule_search_locations is not None else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        base = base.rpartition(".")[0]
    return ".".join(one for one in (base if node.level else "", node.module or "") if one)


def _room_module(page: Page, name: str) -> str | None:
    """The module of these rooms that ``name`` stands for, if it does."""
    node = page.definitions.get(name)
    if not isinstance(node, ast.ImportFrom):
        return None
    origin = _absolute(page.module, node)
    alias = next(one for one in node.names if (one.asname or one.name) == name)
    full = f"{origin}.{alias.name}"
    if full.partition(".")[0] not in ROOMS:
        return None
    try:
        importlib.import_module(full)
    except ImportError:
        return None
    return full


def uses(page: Page, node: Any) -> list[Any]:
    """What ``node`` refers to: (place, key) for each name of the module, and statements that are to be left out."""
    visitor = _Uses(page)
    visitor.visit(node)
    return visitor.found


class _Uses(ast.NodeVisitor):
    """Walks a definition with its scopes. Annotations are passed over: the script does not evaluate them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.found: list[Any] = []
        self.scopes: list[dict[str, Key | None]] = []

    def visit_FunctionDef(self, node: Any) -> None:
        for one in (*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
            self.visit(one)
        self._inside(node, node.body)

    def visit_Lambda(self, node: Any) -> None:
        for one in node.args.defaults:
            self.visit(one)
        self._inside(node, [node.body])

    def visit_ClassDef(self, node: Any) -> None:
        for one in (*node.decorator_list, *node.bases, *(k.value for k in node.keywords)):
            self.visit(one)
        own: dict[str, Key | None] = {name: None for statement in node.body for name in defined(statement)}
        for statement in node.body:
            if set(defined(statement)) & DROPPED:
                self.found.append(_with_decorators(statement))
            elif isinstance(statement, ast.FunctionDef | ast.ClassDef):
                self.visit(statement)
            else:
                self.scopes.append(own)
                self.visit(statement)
                self.scopes.pop()

    def visit_AnnAssign(self, node: Any) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_Import(self, node: Any) -> None:
        """An import at the top of a definition's own module is handled by name; one inside stays where it is."""

    def visit_ImportFrom(self, node: Any) -> None:
        origin = _absolute(self.page.module, node)
        if origin.partition(".")[0] in ROOMS:
            self.scopes[-1].update({one.asname or one.name: (origin, one.name) for one in node.names})
            self.found.append(node)

    def visit_Attribute(self, node: Any) -> None:
        if isinstance(node.value, ast.Name) and not self._local(node.value.id):
            module = _room_module(self.page, node.value.id)
            if module is not None:
                self.found.append((node, (module, node.attr)))
                return
        self.visit(node.value)

    def visit_Name(self, node: Any) -> None:
        for scope in reversed(self.scopes):
            if node.id in scope:
                key = scope[node.id]
                if key is not None:
                    self.found.append((node, key))
                return
        if node.id in self.page.definitions:
            self.found.append((node, (self.page.module, node.id)))

    def _local(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def _inside(self, node: Any, body: list[Any]) -> None:
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        scope: dict[str, Key | None] = {one.arg: None for one in named if one is not None}
        for statement in body:
            for one in ast.walk(statement):
                if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                    scope[one.id] = None
                elif isinstance(one, ast.FunctionDef | ast.ClassDef) and one is not node:
                    scope[one.name] = None
                elif isinstance(one, ast.Import):
                    scope.update({alias.asname or alias.name.partition(".")[0]: None for alias in one.names})
                elif isinstance(one, ast.ImportFrom):
                    scope.update({alias.asname or alias.name: None for alias in one.names})
        self.scopes.append(scope)
        for statement in body:
            self.visit(statement)
        self.scopes.pop()


def _with_decorators(node: Any) -> ast.stmt:
    """A statement that covers ``node`` with its decorators and the string that documents it, for leaving out."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
    return ast.Pass(lineno=first, end_lineno=node.end_lineno, col_offset=0, end_col_offset=0)
