"""Code of these rooms as text that needs none of them: a definition with everything it refers to, and nothing else.

A script that shows a failure must not import the harness, and must not be a second description of it that could come
to differ. So it carries the harness's own source: definitions are looked up where they stand, and what they name is
followed from module to module until only other packages are left, which are imported. Names that two modules use for
different things are told apart by their module's.
"""

from __future__ import annotations

import ast
from typing import Any

from .literals import CannotWriteError
from .sources import ROOMS, Key, page_of, resolve, uses


class Bundle:
    """Collects definitions. ``stubs`` gives the text of those that cannot be taken from where they stand."""

    def __init__(self, stubs: dict[Key, str] | None = None) -> None:
        self.imports: set[str] = set()
        self.definitions: list[str] = []
        self._stubs = stubs or {}
        self._names: dict[Key, str] = {}
        self._written: set[int] = set()
        """Nodes of definitions: one may define several names."""

    def add(self, module: str, name: str) -> str:
        """Include ``name`` of ``module``; returns what it is called in the bundle. Raises ``CannotWriteError``."""
        found = resolve(module, name)
        if isinstance(found, str):
            self.imports.add(found)
            return name
        module, name = found
        key = (module, name)
        if key not in self._names:
            taken = self._names.values()
            self._names[key] = name if name not in taken else f"{name}_of_{module.rpartition('.')[2]}"
            node = page_of(module).definitions[name]
            if id(node) not in self._written:
                self._written.add(id(node))
                self.definitions.append(self._stubs.get(key) or self._text(module, node, self._names[key]))
        return self._names[key]

    def function_of(self, cls: type, method: str) -> str:
        """The text of ``method`` as a function without ``self``. Raises ``CannotWriteError`` where it uses it."""
        owner = next(one for one in cls.__mro__ if method in vars(one))
        if owner.__module__.partition(".")[0] not in ROOMS:
            raise CannotWriteError(f"{owner.__name__}.{method} is not among the sources")
        node = next(
            one
            for one in page_of(owner.__module__).definitions[owner.__name__].body
            if isinstance(one, ast.FunctionDef) and one.name == method
        )
        first = node.args.args[0].arg
        if any(isinstance(one, ast.Name) and one.id == first for one in ast.walk(node)):
            raise CannotWriteError(f"{owner.__name__}.{method} uses its case")
        return self._text(owner.__module__, node, method).replace(f"def {method}({first}, ", f"def {method}(", 1)

    def text(self) -> tuple[str, str]:
        """The imports, sorted, and the definitions in an order in which they can be executed."""
        imports = sorted(self.imports, key=lambda line: (line.startswith("from"), line))
        text = "".join(
            f"{one}\n" if _is_line(one) and _is_line(after) else f"{one}\n\n\n"
            for one, after in zip(self.definitions, [*self.definitions[1:], "\n"], strict=True)
        )
        return "\n".join(imports), text.rstrip()

    def _text(self, module: str, node: Any, emitted: str) -> str:
        page = page_of(module)
        start = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        edits: list[tuple[int, int, str]] = []
        dropped: list[tuple[int, int]] = []
        for use in uses(page, node):
            if isinstance(use, ast.stmt):
                dropped.append((use.lineno, use.end_lineno or use.lineno))
                continue
            place, target = use
            called = self.add(*target)
            if called != ast.get_source_segment(page.source, place):
                edits.append((page.offset(place.lineno, place.col_offset), page.end(place), called))
        text = page.cut(start, node.end_lineno, edits, dropped)
        old = getattr(node, "name", emitted)  # what an assignment names is among its uses
        return text if old == emitted else text.replace(old, emitted, 1)


def _is_line(definition: str) -> bool:
    return "\n" not in definition
