"""replace_module: walk a model, match each layer with its policy, swap it in place, and be able to take it back.

Nothing is changed before every matching layer has been read, and a swap that fails part-way takes back what it did: a
model is replaced as far as its policies reach, or it is as it was.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import catalogue
from .base import DSPolicy
from .plans import Plan, settle
from .swap import Swap, UnsupportedLayer

if TYPE_CHECKING:
    from torch import nn


class NothingReplacedWarning(UserWarning):
    """A model was given in which no layer could be replaced."""


class Replaced(NamedTuple):
    """One layer that was replaced. ``path`` is empty where the whole model is the layer."""

    path: str
    layer_class: str
    policy: str


class Left(NamedTuple):
    """One layer that was left as it was, though a policy knows its kind."""

    path: str
    layer_class: str
    reason: str


@dataclass(frozen=True)
class Replacement:
    """What ``replace_module`` did to a model; ``revert()`` takes it back, bit for bit."""

    model: nn.Module
    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    swaps: tuple[Swap, ...]

    def revert(self) -> None:
        for swap in reversed(self.swaps):
            swap.revert()

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} replaced, {len(self.left)} left"]
        lines += [f"  {one.path or '(model)'}: {one.layer_class} by {one.policy}" for one in self.replaced]
        lines += [f"  {one.path or '(model)'}: {one.layer_class} left: {one.reason}" for one in self.left]
        return "\n".join(lines)


def replace_module(
    model: nn.Module, policies: Iterable[type[DSPolicy]] | None = None, *, plan: Plan | str = Plan.AUTO
) -> Replacement:
    """Replace every layer of ``model`` that one of ``policies`` (default: all of this package) matches, in place.

    ``plan`` says how Transformer layers run (see ``policies.plans``). Raises ``PlanUnavailable``, with the model as it
    was, for one that cannot run here.

    Layers whose policy refuses them stay as they are and are listed in ``left`` with the feature named. Warns with
    ``NothingReplacedWarning`` where no layer was replaced at all.
    """
    from .fused.packed import trim

    execution = settle(plan, model.parameters())
    known = tuple(catalogue.policies() if policies is None else policies)
    found, left = survey(model, known)
    installed: list[Swap] = []
    try:
        for _, swap in found:
            swap.execution = execution
            swap.install()
            installed.append(swap)
    except BaseException:
        for swap in reversed(installed):
            swap.revert()
        raise
    if execution is Plan.PACKED:
        trim()
    if not found:
        warnings.warn(nothing_replaced(model, left), NothingReplacedWarning, stacklevel=2)
    return Replacement(model, tuple(one for one, _ in found), tuple(left), tuple(installed))


def survey(model: nn.Module, policies: tuple[type[DSPolicy], ...]) -> tuple[list[tuple[Replaced, Swap]], list[Left]]:
    """How each layer of ``model`` that is known would be swapped, and which are left; nothing is changed."""
    found: list[tuple[Replaced, Swap]] = []
    left: list[Left] = []
    inside: list[str] = []
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for path, module in model.named_modules():
        if any(path.startswith(prefix) for prefix in inside):
            continue
        name = type(module).__name__
        policy = next((one for one in policies if one.matches(module)), None)
        if policy is None:
            reason = _near_miss(module, policies)
            if reason is not None:
                left.append(Left(path, name, reason))
                inside.append(f"{path}." if path else "")
            continue
        try:
            swap = policy.plan(module)
        except UnsupportedLayer as refusal:
            left.append(Left(path, name, refusal.feature))
        else:
            swap.shared = frozenset(n for n, p in module.named_parameters(remove_duplicate=False) if holders[id(p)] > 1)
            found.append((Replaced(path, name, policy.__name__), swap))
            inside.append(f"{path}." if path else "")
    return found, left


def _near_miss(module: nn.Module, policies: tuple[type[DSPolicy], ...]) -> str | None:
    """Why a layer of a known kind has no policy: it is replaced already, or a subclass with a forward of its own."""
    for cls in type(module).__mro__[1:]:
        for policy in policies:
            if policy.knows(cls):
                if hasattr(type(module), "_fused_policy"):
                    policy_class: Any = module._fused_policy
                    return f"already replaced by {policy_class.__name__}"
                return f"a subclass of {cls.__name__}, which may compute something else"
    return None


def nothing_replaced(model: nn.Module, left: list[Left]) -> str:
    """What to say where no layer was replaced."""
    name = type(model).__name__
    if not left:
        return f"{name} has no layer of a kind that any policy knows; nothing was replaced"
    reasons = "; ".join(sorted({f"{one.layer_class}: {one.reason}" for one in left}))
    return f"nothing was replaced in {name}: {reasons}"
