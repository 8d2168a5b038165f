"""What is judged: a policy, and the case that it is judged on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from policies import replace_module
from policies.base import DSPolicy
from policies.swap import qualified_name

from ..case import Case
from ..placed import placed
from ..process import SHARED
from ..registry import load_case
from ..search import quiet
from ..trial import Handle, Replacer
from .derivation import Derivation
from .derive import derive
from .derived import DerivedCase
from .file import Contents, in_one_line, load_file
from .fit import Refused, without
from .models import NotDerivable

Known = tuple[tuple[str, str], ...]
"""Layer classes, and the paths of cases for them."""


@dataclass(frozen=True)
class Subject:
    """What is judged, as data: a file, what is meant in it, and for one kind of layer a case: the ``derivation`` of one, the path
    ``module:Class`` of one that is ``known``, or else the one in the file. ``refused`` is what the policy has been seen to
    refuse in it; models run on ``device``."""

    path: str
    contents: Contents
    derivation: Derivation | None = None
    known: str | None = None
    refused: Refused = ()
    device: str = "cpu"

    @property
    def policy(self) -> type[DSPolicy]:
        found: type[DSPolicy] = getattr(load_file(self.path), self.contents.policy)
        return found

    @property
    def case(self) -> Case:
        return placed(without(self._whole(), self.refused), self.device)

    def _whole(self) -> Case:
        if self.derivation is not None:
            return DerivedCase(self.derivation)
        if self.known is not None:
            return load_case(self.known)
        assert self.contents.case is not None
        made: Case = getattr(load_file(self.path), self.contents.case)()
        return made

    @property
    def replacer(self) -> Replacer:
        policy = self.policy

        def replacer(model: Any) -> Handle:
            SHARED.look()  # building the model has imported its modules
            return replace_module(model, policies=(policy,))

        return replacer


@dataclass(frozen=True)
class Subjects:
    """``subjects`` by the names of their cases, and of the layer classes for which there is none why not."""

    subjects: tuple[tuple[str, Subject], ...]
    unjudged: tuple[str, ...] = ()


def subjects_in(path: str, contents: Contents, known: Known, device: str = "cpu") -> Subjects:
    """What a policy is judged on. The case beside it, or for each layer class that it replaces the one that is known, and else
    one that is derived. Raises ``NotDerivable`` where there is none at all."""
    problems: list[str] = []
    if contents.case is not None:
        found = [Subject(path, contents)]
    else:
        found, problems = _for_each_class(path, contents, known)
    if not found:
        none = f"{contents.policy}.layer_classes is empty: say which classes it replaces, module:Class"
        raise NotDerivable(problems[0] if problems else none)
    found = [dataclasses.replace(one, device=device) for one in found]
    return Subjects(tuple((_named(one), one) for one in found), tuple(problems))


def _for_each_class(path: str, contents: Contents, known: Known) -> tuple[list[Subject], list[str]]:
    found: list[Subject] = []
    problems: list[str] = []
    for layer in contents.layer_classes:
        cases = [case for one, case in known if one == layer and _has_layer(case, layer)]
        try:
            found += [Subject(path, contents, known=case) for case in cases] or [Subject(path, contents, derive(layer))]
        except NotDerivable as problem:
            problems.append(f"{problem}")
    return found, problems


def _has_layer(case: str, layer: str) -> bool:
    """Whether a model of the case at ``case`` has a layer of the class; not where the case cannot be built here."""
    try:
        with quiet():
            made = load_case(case)
            classes = {type(one) for one in made.build(made.simplest).modules()}
    except Exception:
        return False
    return any(layer in (qualified_name(one), f"*:{one.__name__}") for one in classes)


def _named(subject: Subject) -> str:
    """The name of the subject's case, whose simplest model builds. Raises ``NotDerivable``."""
    try:
        case = subject.case
        case.build(case.simplest)
    except Exception as problem:
        raise NotDerivable(f"the case does not build: {in_one_line(problem, subject.path)}") from None
    return case.name
