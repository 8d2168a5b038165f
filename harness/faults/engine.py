"""Faults of the replace engine: what is swapped, kept and given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from policies.fused import diffusion_blocks, linear, packed

from ..trial import Handle
from . import swaps
from .edits import each_linear
from .fault import Inject, Traits, layered, misreplacing, patched, wrapped
from .layout import transposed


def _nobody_else(honest: Any) -> Any:
    return lambda *tensors: True


def _moves_anything(honest: Any) -> Any:
    return lambda parameter: type(parameter) is nn.Parameter and not parameter.is_inference()


def _moves_weights(traits: Traits) -> bool:
    return traits.joins or not traits.layered


def _several(traits: Traits) -> bool:
    return traits.layered and traits.varies("layers")


def _acting(act: Callable[[Any, Any], None]) -> Inject:
    return wrapped(swaps.after(act))


def _handing(handle: Callable[[Handle], Any]) -> Inject:
    return wrapped(lambda replacer: lambda model: handle(replacer(model)))


ENGINE = (
    misreplacing(
        "F82 nothing",
        "F82 F11 M19",
        "DeepSpeed PR #3052",
        "Nothing is replaced, and nothing is said.",
        wrapped(swaps.nothing),
    ),
    misreplacing(
        "F82 claimed",
        "F82",
        "DeepSpeed #2549",
        "Layers are reported as replaced and are the originals.",
        wrapped(swaps.only_claimed),
        expects=("contract", "replaced again"),
    ),
    misreplacing(
        "M19 first only",
        "M19",
        "lmdeploy #138",
        "Only the first layer is replaced.",
        wrapped(swaps.only(lambda replaced: slice(0, 1))),
        applies=_several,
    ),
    misreplacing(
        "M19 but the last",
        "M19",
        "lmdeploy #138",
        "The last layer is not replaced.",
        wrapped(swaps.only(lambda replaced: slice(0, max(len(replaced) - 1, 0)))),
    ),
    misreplacing(
        "F08 instance",
        "F08",
        "Liger-Kernel #739",
        "The replacement is an object of another class, with the layer inside.",
        _acting(swaps.wraps),
        applies=layered,
        expects=("contract",),
    ),
    misreplacing(
        "F08 attribute",
        "F08",
        "Liger-Kernel #764",
        "The replacement lacks an attribute that the layer had.",
        _acting(swaps.loses_attribute),
        applies=lambda traits: any(map(swaps.public_attributes, traits.layers)),
        expects=("contract",),
    ),
    misreplacing(
        "F32 untied",
        "F32 M24",
        "accelerate #993",
        "Shared parameters become copies.",
        _acting(swaps.unties),
        applies=layered,
        expects=("shared weights",),
    ),
    misreplacing(
        "F79 originals",
        "F79 M24",
        "DeepSpeed #1332",
        "The originals' weights stay alive beside the replacement's.",
        _acting(swaps.keeps_originals),
        expects=("storages",),
    ),
    misreplacing(
        "F79 processes",
        "F79",
        "intel-extension-for-pytorch #686",
        "Weights that processes share are copied into the memory of one.",
        patched(*((place, "may_move", _moves_anything) for place in (linear, packed, diffusion_blocks))),
        applies=_moves_weights,
        expects=("shared memory",),
    ),
    misreplacing(
        "F79 vector",
        "F79",
        "Megatron-LM PR #6963",
        "Weights are joined anew outside of the buffer that an optimiser updates.",
        patched(*((place, "alone", _nobody_else) for place in (linear, diffusion_blocks))),
        applies=_moves_weights,
        expects=("shared memory",),
    ),
    misreplacing(
        "F79 buffer",
        "F79",
        "lmdeploy #138",
        "The replacement's packed weights appear in the model's state.",
        _acting(swaps.adds_buffer),
        expects=("revert",),
    ),
    misreplacing(
        "M08 source",
        "M08",
        "read in DeepSpeed's transpose helper",
        "Square weights are transposed in place, in the storage of the model that was passed in.",
        _acting(swaps.transposes_source),
        applies=lambda traits: any(each_linear(transposed)(one) is not one for one in traits.anatomies),
        expects=("revert",),
    ),
    misreplacing(
        "F80 mutated",
        "F80",
        "DeepSpeed #3285",
        "The parameters of the model that was passed in are rounded to half precision.",
        _acting(swaps.casts_norms),
    ),
    misreplacing(
        "F63 global",
        "F63",
        "DeepSpeed PR #4384",
        "What a layer derived from its weights is kept under its name for the whole process.",
        wrapped(swaps.shared_cores),
        applies=layered,
        expects=("two models",),
    ),
    misreplacing(
        "F79 for good",
        "F79 F63",
        "DeepSpeed #2466",
        "What was replaced is kept in a list of the process, and never freed.",
        wrapped(swaps.remembering),
        expects=("storages",),
    ),
    misreplacing(
        "F83 parameters",
        "F83 F27",
        "DeepSpeed PR #3736",
        "Parameters are other objects than before, and an optimiser trains those that are gone.",
        _acting(swaps.anew),
        expects=("replaced again",),
    ),
    misreplacing(
        "F83 forgetful",
        "F83 F30",
        "diffusers #11903",
        "Reverting brings back the weights from before the swap, whatever was learnt since.",
        _handing(swaps.Forgetful),
        expects=("shared weights",),
    ),
    misreplacing(
        "F30 irreversible",
        "F30",
        "diffusers #11903",
        "Reverting does nothing.",
        _handing(swaps.Irreversible),
        expects=("revert",),
    ),
)
"""Wrong swaps."""
