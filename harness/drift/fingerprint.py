"""A layer class's fingerprint: the code that a policy relies on, and what its parents and its configuration say.

Read from source text alone: nothing is imported and nothing built, so that fingerprints of all layers take a second,
and a release that no longer imports has them too.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from policies.source import own_returns

from .source import Missing, arguments, definitions, imported_from, method, names_in, tree_of

Definition = ast.ClassDef | ast.FunctionDef


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What was there. Sources are hashed without comments, docstrings and layout, so that only code counts."""

    signature: dict[str, str] = {}
    """Parameters of ``forward`` and their defaults as written, in order."""
    returns: str = ""
    """Return annotation of ``forward``, and what its last return statement hands back."""
    sources: dict[str, str] = {}
    """The layer class and each class and function that it uses, directly or not, in its module or in the packages
    beside it -> hash."""
    parts: tuple[str, ...] = ()
    """``Class.attribute`` of every submodule, parameter and buffer that those classes make."""
    config: dict[str, str] = {}
    """Fields that the configuration declares -> default as written."""
    read_by_parents: tuple[str, ...] = ()
    """Attributes that other classes of the module read off the layers that they loop over."""
    missing: str = ""
    """Why there is nothing to fingerprint."""


def fingerprint(path: str) -> Fingerprint:
    """The fingerprint of the class ``module:Class`` as it is installed."""
    module, _, name = path.partition(":")
    try:
        tree = tree_of(module)
    except Missing as problem:
        return Fingerprint(missing=str(problem))
    known = definitions(tree)
    cls = known.get(name)
    if not isinstance(cls, ast.ClassDef):
        return Fingerprint(missing=f"{module} has no class {name}")
    used = {where if home == module else f"{home}:{where}": node for home, where, node in _used(module, name)}
    forward = _inherited_method(cls, "forward", known)
    return Fingerprint(
        signature={} if forward is None else arguments(forward),
        returns="" if forward is None else _returns(forward),
        sources={one: _hash(node) for one, node in sorted(used.items())},
        parts=tuple(sorted(set(_parts(used.values())))),
        config=_config(module, tree),
        read_by_parents=tuple(sorted(_read_by_parents(tree, used))),
    )


def _hash(node: ast.AST) -> str:
    return hashlib.sha256(_text(node).encode()).hexdigest()[:16]


def _text(node: object) -> str:
    """A syntax tree as text, without what is empty: releases of Python differ in which fields there are to be so."""
    if isinstance(node, ast.AST):
        fields = (f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if value not in (None, []))
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_text, node))}]" if isinstance(node, list) else repr(node)


def _used(module: str, start: str) -> Iterator[tuple[str, str, Definition]]:
    """``start`` and every class and function that its code names, and theirs, with the modules that they are in."""
    around = module.rsplit(".", 2)[0]
    waiting, seen = [(module, start)], set()
    while waiting:
        home, name = waiting.pop()
        if (home, name) in seen:
            continue
        seen.add((home, name))
        try:
            tree = tree_of(home)
        except Missing:
            continue
        found = definitions(tree).get(name)
        if found is not None:
            yield home, name, found
            waiting += [(home, one) for one in sorted(names_in(found))]
        elif (source := imported_from(tree, home, name)).startswith(around):
            waiting.append((source, name))


def _inherited_method(cls: ast.ClassDef, name: str, known: dict[str, Definition]) -> ast.FunctionDef | None:
    """The method of ``cls``, or of a base class in the same module."""
    own = method(cls, name)
    bases = [known.get(one.id) for one in cls.bases if isinstance(one, ast.Name)]
    inherited = (_inherited_method(base, name, known) for base in bases if isinstance(base, ast.ClassDef))
    return own or next((one for one in inherited if one is not None), None)


def _returns(forward: ast.FunctionDef) -> str:
    said = "unannotated" if forward.returns is None else ast.unparse(forward.returns)
    handed = own_returns(forward)
    return f"{said}; {ast.unparse(handed[-1]) if handed else 'nothing'}"


def _parts(things: Iterable[Definition]) -> Iterator[str]:
    for thing in things:
        for node in ast.walk(thing):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("register_"):
                yield from (f"{thing.name}.{one.value!s}" for one in node.args[:1] if isinstance(one, ast.Constant))
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                yield from (f"{thing.name}.{name}" for name in map(_own_attribute, node.targets) if name)


def _own_attribute(target: ast.expr) -> str:
    """The attribute of ``self`` that is assigned to, or nothing."""
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        return target.attr
    return ""


def _config(module: str, tree: ast.Module) -> dict[str, str]:
    """Declared fields of every configuration class that the module imports from beside itself."""
    found: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or node.level != 1 or "configuration" not in (node.module or ""):
            continue
        beside = definitions(tree_of(f"{module.rpartition('.')[0]}.{node.module}"))
        for name in (one.name for one in node.names):
            cls = beside.get(name)
            if isinstance(cls, ast.ClassDef):
                found |= {f"{name}.{field}": default for field, default in _fields(cls)}
    return found


def _fields(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, "required" if node.value is None else ast.unparse(node.value)
    constructor = method(cls, "__init__")
    if constructor is not None:
        yield from arguments(constructor).items()


def _read_by_parents(tree: ast.Module, used: dict[str, Definition]) -> Iterator[str]:
    for name, thing in definitions(tree).items():
        if name in used or not isinstance(thing, ast.ClassDef):
            continue
        for loop in (node for node in ast.walk(thing) if isinstance(node, ast.For)):
            variables = names_in(loop.target)
            for node in ast.walk(loop):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in variables:
                    yield node.attr
