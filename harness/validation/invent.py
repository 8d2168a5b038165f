"""A first policy for a layer class: found, written, tried, and narrowed to what holds.

What values cannot show (the layout of a fused projection, which elements rotate) is found by trying. A configuration
field under which the description does not hold goes into the page as a refusal: the first version already either
computes the same or refuses by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from policies import replace_module
from policies.anatomy import QKVLayout, RotaryStyle
from policies.base import DSPolicy

from ..case import Example
from ..exact import exact_mode
from ..properties.equality import MODEL_EQUALITY
from ..search import quiet
from ..trial import Trial
from .derivation import Derivation
from .derive import derive
from .derived import DerivedCase
from .inspection import Inspection, constants, inspect_layer
from .models import layers_of
from .page import Choices, write_page


@dataclass(frozen=True)
class Invented:
    """``source`` is the page; ``refused`` the configuration values it refuses; ``wrong`` what still does not hold."""

    source: str
    found: Inspection
    derivation: Derivation
    refused: tuple[str, ...]
    wrong: tuple[str, ...]


def invent(name: str, layer: str) -> Invented:
    """Write a policy ``name`` for the layer class ``module:Class``. Raises ``NotDerivable``."""
    derivation = derive(layer)
    found = inspect_layer(derivation)
    case = DerivedCase(derivation)
    plain: dict[str, Any] = {}
    if found.open:
        return Invented(write_page(name, found, Choices(), plain), found, derivation, (), tuple(found.open))
    choices, problem = _choose(name, found, case)
    if problem is not None:
        return Invented(write_page(name, found, choices, plain), found, derivation, (), (problem,))
    refused, wrong = [], []
    policy = _policy(name, write_page(name, found, choices, plain))
    for axis, example in _one_axis_off(case):
        problem = _wrong(case, example, policy)
        if problem is None:
            continue
        if axis.startswith("config "):
            field = axis.removeprefix("config ")
            plain[field] = case.simplest[axis]
            refused.append(f"{field}={example[axis]!r}")
        else:
            wrong.append(f"{axis}={example[axis]}: {problem}")
    found.constants = _constants(case, found, plain)
    return Invented(write_page(name, found, choices, plain), found, derivation, tuple(refused), tuple(wrong))


def _constants(case: DerivedCase, found: Inspection, plain: dict[str, Any]) -> dict[str, bool | float]:
    """What is set on a layer's parts under every configuration that the page does not refuse: flags that it does not read anyway,
    and the numbers of fields that it refuses."""
    examples = [case.simplest, *(one for axis, one in _one_axis_off(case) if axis.removeprefix("config ") not in plain)]
    with quiet():
        layers = [one for example in examples for one in layers_of(case.build(example), case.layer)]
    read = {"is_causal"} if found.causal_flag else set()
    same = {path: (path.rpartition(".")[2], value) for path, value in constants(layers).items()}
    return {path: value for path, (name, value) in same.items() if name in plain or (type(value) is bool and name not in read)}


def _choose(name: str, found: Inspection, case: DerivedCase) -> tuple[Choices, str | None]:
    """The first choice under which a telling example agrees, or the first of all and what was wrong with it."""
    layouts = tuple(QKVLayout) if found.fused else (QKVLayout.BLOCKED,)
    styles = tuple(RotaryStyle) if found.rotary else (RotaryStyle.HALF,)
    first: str | None = None
    for layout, style in product(layouts, styles):
        choices = Choices(layout, style)
        policy = _policy(name, write_page(name, found, choices, {}))
        problem = next((one for one in (_wrong(case, example, policy) for example in _tellings(case)) if one), None)
        if problem is None:
            return choices, None
        first = first or problem
    return Choices(layouts[0], styles[0]), first


def _tellings(case: DerivedCase) -> Iterator[Example]:
    yield case.simplest
    yield case.apart(case.with_those_drawn(kv_heads=2, group=3, heads=3, tokens=4, head_size=8))


def _one_axis_off(case: DerivedCase) -> Iterator[tuple[str, Example]]:
    example = list(_tellings(case))[-1]
    for axis in case.axes:
        for value in axis.values[1:]:
            yield axis.name, case.apart(_yielding(case, example.with_value(axis.name, value), axis.name))


def _yielding(case: DerivedCase, example: Example, axis: str) -> Example:
    """``example``, with values that do not go with that of ``axis`` back at their simplest, so that it is tried at all."""
    simplest = case.simplest
    for together in case.derivation.kept_apart:
        names = [name for name, _ in together]
        if axis in names and all(example.values.get(name) == value for name, value in together):
            other = next(name for name in reversed(names) if name != axis)
            example = example.with_value(other, simplest[other])
    return example


def _policy(name: str, source: str) -> type[DSPolicy]:
    """The policy class in ``source``, which this program wrote itself."""
    namespace: dict[str, Any] = {"__name__": f"invented_{name}"}
    exec(compile(source, f"<{name}>", "exec"), namespace)
    policy: type[DSPolicy] = namespace[name]
    return policy


def _wrong(case: DerivedCase, example: Example, policy: type[DSPolicy]) -> str | None:
    """What is wrong with ``policy`` on this example, or None."""
    trial = Trial(case, example, lambda model: replace_module(model, policies=(policy,)))
    try:
        with quiet(), exact_mode():
            MODEL_EQUALITY.check(trial)
    except Exception as problem:
        return f"{' '.join(str(problem).split())[:140] or type(problem).__name__}"
    return None


def write_file(invented: Invented, path: Path) -> None:
    """Write the page. Raises ``FileExistsError`` rather than to overwrite somebody's work."""
    with path.open("x") as file:
        file.write(invented.source)
