"""The source of an installed module, found and parsed without importing anything."""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path


class Missing(LookupError):
    """A module or class that is not installed. One line."""


@functools.cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of ``module``, without docstrings. Raises ``Missing``."""
    tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def file_of(module: str) -> Path:
    """The file of ``module``. Only its top package is looked up, which imports nothing."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(root).joinpath(*rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise Missing(f"{module} is not installed")


def definitions(tree: ast.Module) -> dict[str, ast.ClassDef | ast.FunctionDef]:
    """Classes and functions at the top of a module, by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def imported_from(tree: ast.Module, module: str, name: str) -> str:
    """The module from which ``module`` imports ``name``; empty where it does not."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            if not node.level:
                return node.module or ""
            package = module.split(".")[: -node.level]
            return ".".join([*package, *([node.module] if node.module else [])])
    return ""


def method(cls: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """The method of ``cls`` itself."""
    return next((one for one in cls.body if isinstance(one, ast.FunctionDef) and one.name == name), None)


def names_in(node: ast.AST) -> set[str]:
    """Every plain name that the code of ``node`` mentions."""
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def arguments(function: ast.FunctionDef) -> dict[str, str]:
    """Parameters of ``function`` after ``self``, in order, with their defaults as written."""
    spec = function.args
    plain = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(spec.defaults)) + list(spec.defaults)
    found = {one.arg: _written(default) for one, default in zip(plain, defaults, strict=True) if one.arg != "self"}
    if spec.vararg is not None:
        found[f"*{spec.vararg.arg}"] = ""
    found |= {one.arg: _written(default) for one, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True)}
    if spec.kwarg is not None:
        found[f"**{spec.kwarg.arg}"] = ""
    return found


def _written(default: ast.expr | None) -> str:
    return "required" if default is None else ast.unparse(default)
