"""Faults of matching: which layers a policy takes, and what it should have refused."""

from __future__ import annotations

from typing import Any

from torch import nn

from policies import replace as replace_engine
from policies.anatomy import LayerAnatomy
from policies.base import DSPolicy
from policies.replace import Left
from policies.structure import Structure
from policies.swap import UnsupportedLayer

from . import swaps
from .fault import Traits, layered, misreplacing, patched, wrapped


def _of_any_kind(honest: Any) -> Any:
    def wrong(self: Structure, anatomy: LayerAnatomy) -> None:
        try:
            honest(self, anatomy)
        except UnsupportedLayer as refusal:
            if "not a plain parameter" not in str(refusal):
                raise

    return wrong


def _by_substring(honest: Any) -> Any:
    """A class whose name contains the name of one that is known."""

    def wrong(cls: type[DSPolicy], layer_class: type) -> bool:
        short = {path.partition(":")[2] for path in cls.layer_classes}
        return any(name in layer_class.__name__ for name in short)

    return classmethod(wrong)


def _by_ancestor(honest: Any) -> Any:
    def wrong(cls: type[DSPolicy], layer_class: type) -> bool:
        return any(honest.__func__(cls, one) for one in layer_class.__mro__)

    return classmethod(wrong)


def _attribute_gone(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AttributeError("object has no attribute 'num_heads'")

    return wrong


def _accepts_anything(honest: Any) -> Any:
    return lambda self, anatomy: None


def _drops(traits: Traits) -> bool:
    return traits.layered and any(isinstance(one, nn.Dropout) for layer in traits.layers for one in layer.modules())


def _from_transformers(traits: Traits) -> bool:
    return traits.layered and all(type(layer).__module__.startswith("transformers.") for layer in traits.layers)


def _any_class(honest: Any) -> Any:
    return lambda self, path, *class_names: self.get(path)


def _refuses_without_reason(honest: Any) -> Any:
    def wrong(*args: Any) -> Any:
        found, left = honest(*args)
        return found, [Left(one.path, one.layer_class, "") for one in left]

    return wrong


def _refuses_all(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedLayer("not supported")

    return wrong


def _refuses(traits: Traits) -> bool:
    return bool(traits.case.refusals())


MATCHING = (
    misreplacing(
        "M19 substring",
        "M19 F24",
        "DeepSpeed PR #4895, PR #5007, PR #5217",
        "Layers are found by a part of their class's name.",
        patched((DSPolicy, "knows", _by_substring)),
        expects=("refusal",),
    ),
    misreplacing(
        "M19 subclass",
        "M19",
        "DeepSpeed #4903",
        "A subclass, which may compute something else, is taken for the class.",
        patched((DSPolicy, "knows", _by_ancestor)),
        expects=("refusal",),
    ),
    misreplacing(
        "M19 part",
        "M19",
        "read in DeepSpeed's BERT policy",
        "A layer's attention or MLP is taken for what its name says, whatever its class.",
        patched((Structure, "module", _any_class)),
        applies=layered,
        expects=("refusal",),
    ),
    misreplacing(
        "F72 not listed",
        "F72",
        "DeepSpeed #6572",
        "The policy exists, and the table that the engine reads has no entry for it.",
        wrapped(swaps.without_policy),
    ),
    misreplacing(
        "F39 attribute",
        "F39 F12 F71",
        "DeepSpeed PR #7443, PR #2254",
        "Reading a layer raises: an attribute has moved.",
        patched((Structure, "__init__", _attribute_gone)),
        applies=layered,
    ),
    misreplacing(
        "F69 refused",
        "F69",
        "DeepSpeed #7282",
        "A layer that could be replaced is refused.",
        patched((Structure, "__init__", _refuses_all)),
        applies=layered,
    ),
    misreplacing(
        "F69 no reason",
        "F69",
        "DeepSpeed #7282",
        "A refusal does not say what it refuses.",
        patched((replace_engine, "survey", _refuses_without_reason)),
        applies=_refuses,
        expects=("refusal",),
    ),
    misreplacing(
        "F25 unread",
        "F25",
        "DeepSpeed PR #4511",
        "Parameters that the policy knows nothing of are passed over.",
        patched((Structure, "all_parameters_read", _accepts_anything)),
        applies=layered,
        expects=("refusal",),
    ),
    misreplacing(
        "F25 unread module",
        "F25",
        "DeepSpeed PR #4511",
        "Modules without parameters that the policy knows nothing of, somebody's own dropout, are passed over.",
        patched((Structure, "all_modules_read", lambda honest: lambda self: None)),
        applies=_drops,
        expects=("refusal", "settings"),
    ),
    misreplacing(
        "F67 wrapped",
        "F67 F25",
        "DeepSpeed #2876",
        "A quantised weight, a tensor that multiplies by a code of its own, is taken for a plain one.",
        patched((Structure, "all_parameters_read", _of_any_kind)),
        applies=_from_transformers,
        expects=("refusal",),
    ),
    misreplacing(
        "F39 heads",
        "F39 M03",
        "DeepSpeed PR #7443",
        "The number of heads is read where the layer itself does not look, and nobody asks whether the projections agree.",
        patched((Structure, "heads_agree", lambda honest: lambda self, anatomy: None)),
        applies=layered,
        expects=("refusal",),
    ),
)
"""Taken, and not what it was taken for; or refused for nothing."""
