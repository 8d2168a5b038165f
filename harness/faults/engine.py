"""Faults of the replace engine: what is found, swapped, kept and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from policies import replace as replace_engine
from policies.anatomy import LayerAnatomy
from policies.base import DSPolicy, UnsupportedLayer
from policies.fused import diffusion_blocks, linear, packed
from policies.replace import Left
from policies.structure import Structure

from ..trial import Handle
from . import swaps
from .edits import each_linear
from .fault import Applies, Fault, Inject, Traits, always, layered, patched, wrapped
from .layout import transposed


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


def _nobody_else(honest: Any) -> Any:
    return lambda *tensors: True


def _moves_anything(honest: Any) -> Any:
    return lambda parameter: type(parameter) is nn.Parameter and not parameter.is_inference()


def _drops(traits: Traits) -> bool:
    return traits.layered and any(isinstance(one, nn.Dropout) for layer in traits.layers for one in layer.modules())


def _from_transformers(traits: Traits) -> bool:
    return traits.layered and all(type(layer).__module__.startswith("transformers.") for layer in traits.layers)


def _moves_weights(traits: Traits) -> bool:
    return traits.joins or not traits.layered


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


def _fault(
    id: str,
    rows: str,
    source: str,
    breaks: str,
    inject: Inject,
    *,
    applies: Applies = always,
    expects: tuple[str, ...] = (),
) -> Fault:
    return Fault(
        id=id,
        rows=tuple(rows.split()),
        source=source,
        breaks=breaks,
        seam="engine",
        applies=applies,
        inject=inject,
        expects=expects,
    )


def _several(traits: Traits) -> bool:
    return traits.layered and traits.varies("layers")


def _refuses(traits: Traits) -> bool:
    return bool(traits.case.refusals())


def _acting(act: Callable[[Any, Any], None]) -> Inject:
    return wrapped(swaps.after(act))


def _handing(handle: Callable[[Handle], Any]) -> Inject:
    return wrapped(lambda replacer: lambda model: handle(replacer(model)))


ENGINE = (
    _fault(
        "F82 nothing",
        "F82 F11 M19",
        "DeepSpeed PR #3052",
        "Nothing is replaced, and nothing is said.",
        wrapped(swaps.nothing),
    ),
    _fault(
        "F82 claimed",
        "F82",
        "DeepSpeed #2549",
        "Layers are reported as replaced and are the originals.",
        wrapped(swaps.only_claimed),
        expects=("contract", "replaced again"),
    ),
    _fault(
        "M19 first only",
        "M19",
        "lmdeploy #138",
        "Only the first layer is replaced.",
        wrapped(swaps.only(lambda replaced: slice(0, 1))),
        applies=_several,
    ),
    _fault(
        "M19 but the last",
        "M19",
        "lmdeploy #138",
        "The last layer is not replaced.",
        wrapped(swaps.only(lambda replaced: slice(0, max(len(replaced) - 1, 0)))),
    ),
    _fault(
        "M19 substring",
        "M19 F24",
        "DeepSpeed PR #4895, PR #5007, PR #5217",
        "Layers are found by a part of their class's name.",
        patched((DSPolicy, "knows", _by_substring)),
        expects=("refusal",),
    ),
    _fault(
        "M19 subclass",
        "M19",
        "DeepSpeed #4903",
        "A subclass, which may compute something else, is taken for the class.",
        patched((DSPolicy, "knows", _by_ancestor)),
        expects=("refusal",),
    ),
    _fault(
        "M19 part",
        "M19",
        "read in DeepSpeed's BERT policy",
        "A layer's attention or MLP is taken for what its name says, whatever its class.",
        patched((Structure, "module", _any_class)),
        applies=layered,
        expects=("refusal",),
    ),
    _fault(
        "F72 not listed",
        "F72",
        "DeepSpeed #6572",
        "The policy exists, and the table that the engine reads has no entry for it.",
        wrapped(swaps.without_policy),
    ),
    _fault(
        "F39 attribute",
        "F39 F12 F71",
        "DeepSpeed PR #7443, PR #2254",
        "Reading a layer raises: an attribute has moved.",
        patched((Structure, "__init__", _attribute_gone)),
        applies=layered,
    ),
    _fault(
        "F69 refused",
        "F69",
        "DeepSpeed #7282",
        "A layer that could be replaced is refused.",
        patched((Structure, "__init__", _refuses_all)),
        applies=layered,
    ),
    _fault(
        "F69 no reason",
        "F69",
        "DeepSpeed #7282",
        "A refusal does not say what it refuses.",
        patched((replace_engine, "survey", _refuses_without_reason)),
        applies=_refuses,
        expects=("refusal",),
    ),
    _fault(
        "F25 unread",
        "F25",
        "DeepSpeed PR #4511",
        "Parameters that the policy knows nothing of are passed over.",
        patched((Structure, "all_parameters_read", _accepts_anything)),
        applies=layered,
        expects=("refusal",),
    ),
    _fault(
        "F25 unread module",
        "F25",
        "DeepSpeed PR #4511",
        "Modules without parameters that the policy knows nothing of, somebody's own dropout, are passed over.",
        patched((Structure, "all_modules_read", lambda honest: lambda self: None)),
        applies=_drops,
        expects=("refusal", "settings"),
    ),
    _fault(
        "F67 wrapped",
        "F67 F25",
        "DeepSpeed #2876",
        "A quantised weight, a tensor that multiplies by a code of its own, is taken for a plain one.",
        patched((Structure, "all_parameters_read", _of_any_kind)),
        applies=_from_transformers,
        expects=("refusal",),
    ),
    _fault(
        "F39 heads",
        "F39 M03",
        "DeepSpeed PR #7443",
        "The number of heads is read where the layer itself does not look, and nobody asks whether the projections agree.",
        patched((Structure, "heads_agree", lambda honest: lambda self, anatomy: None)),
        applies=layered,
        expects=("refusal",),
    ),
    _fault(
        "F08 instance",
        "F08",
        "Liger-Kernel #739",
        "The replacement is an object of another class, with the layer inside.",
        _acting(swaps.wraps),
        applies=layered,
        expects=("contract",),
    ),
    _fault(
        "F08 attribute",
        "F08",
        "Liger-Kernel #764",
        "The replacement lacks an attribute that the layer had.",
        _acting(swaps.loses_attribute),
        applies=lambda traits: any(map(swaps.public_attributes, traits.layers)),
        expects=("contract",),
    ),
    _fault(
        "F32 untied",
        "F32 M24",
        "accelerate #993",
        "Shared parameters become copies.",
        _acting(swaps.unties),
        applies=layered,
        expects=("shared weights",),
    ),
    _fault(
        "F79 originals",
        "F79 M24",
        "DeepSpeed #1332",
        "The originals' weights stay alive beside the replacement's.",
        _acting(swaps.keeps_originals),
        expects=("storages",),
    ),
    _fault(
        "F79 processes",
        "F79",
        "intel-extension-for-pytorch #686",
        "Weights that processes share are copied into the memory of one.",
        patched(*((place, "may_move", _moves_anything) for place in (linear, packed, diffusion_blocks))),
        applies=_moves_weights,
        expects=("shared memory",),
    ),
    _fault(
        "F79 vector",
        "F79",
        "Megatron-LM PR #6963",
        "Weights are joined anew outside of the buffer that an optimiser updates.",
        patched(*((place, "alone", _nobody_else) for place in (linear, diffusion_blocks))),
        applies=_moves_weights,
        expects=("shared memory",),
    ),
    _fault(
        "F79 buffer",
        "F79",
        "lmdeploy #138",
        "The replacement's packed weights appear in the model's state.",
        _acting(swaps.adds_buffer),
        expects=("revert",),
    ),
    _fault(
        "M08 source",
        "M08",
        "read in DeepSpeed's transpose helper",
        "Square weights are transposed in place, in the storage of the model that was passed in.",
        _acting(swaps.transposes_source),
        applies=lambda traits: any(each_linear(transposed)(one) is not one for one in traits.anatomies),
        expects=("revert",),
    ),
    _fault(
        "F80 mutated",
        "F80",
        "DeepSpeed #3285",
        "The parameters of the model that was passed in are rounded to half precision.",
        _acting(swaps.casts_norms),
    ),
    _fault(
        "F63 global",
        "F63",
        "DeepSpeed PR #4384",
        "What a layer derived from its weights is kept under its name for the whole process.",
        wrapped(swaps.shared_cores),
        applies=layered,
        expects=("two models",),
    ),
    _fault(
        "F83 forgetful",
        "F83 F30",
        "diffusers #11903",
        "Reverting brings back the weights from before the swap, whatever was learnt since.",
        _handing(swaps.Forgetful),
        expects=("shared weights",),
    ),
    _fault(
        "F30 irreversible",
        "F30",
        "diffusers #11903",
        "Reverting does nothing.",
        _handing(swaps.Irreversible),
        expects=("revert",),
    ),
)
"""Wrong swaps."""
