"""What the source text of a function says. Imports no torch: a release that does not import is read too."""

from __future__ import annotations

import ast


def own_returns(function: ast.stmt) -> list[ast.expr]:
    """What the returns of ``function`` hand back, in the order of its lines; those of functions inside it are not its own."""
    found: list[ast.expr] = []
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            found.append(node.value)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return sorted(found, key=lambda one: one.lineno)
