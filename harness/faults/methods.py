"""Faults of the five methods: what a policy says of its layer's parameters by name and by flag."""

from __future__ import annotations

from typing import Any

from policies.anatomy import SplitQKV
from policies.base import (
    AnatomyPolicy,
    AttentionTensors,
    HiddenHeads,
    MLPTensors,
    NormTensors,
    ParamNames,
    TransformerPolicy,
)

from .fault import Applies, Fault, Patch, Traits, layered, patched, seeded


def _renamed(names: Any) -> Patch:
    """A patch of the checkpoint names that a policy gives, flags left alone."""

    def make(honest: Any) -> Any:
        def wrong(self: AnatomyPolicy) -> ParamNames:
            right = honest(self)
            return ParamNames((*names(right.names), *right[-2:]))

        return wrong

    return AnatomyPolicy, "get_param_names", make


def _missing_comma(names: tuple[str, ...]) -> tuple[str, ...]:
    return (*names[:-2], names[-2] + names[-1])


def _without_prefix(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.partition(".")[2] or name for name in names)


_MEGATRON_NAMES = (
    "attention.query_key_value.weight",
    "attention.query_key_value.bias",
    "attention.dense.weight",
    "attention.dense.bias",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias",
    "mlp.dense_4h_to_h.weight",
    "mlp.dense_4h_to_h.bias",
    "input_layernorm.weight",
    "input_layernorm.bias",
    "post_attention_layernorm.weight",
    "post_attention_layernorm.bias",
)


def _another_policys(names: tuple[str, ...]) -> tuple[str, ...]:
    return ("transformer." + names[0], *names[1:]) if set(names) <= set(_MEGATRON_NAMES) else _MEGATRON_NAMES


def _not_forwarded(*arguments: str) -> Patch:
    """Constructor arguments of ``TransformerPolicy`` that a policy takes and does not hand on."""

    def make(honest: Any) -> Any:
        def wrong(self: TransformerPolicy, **flags: Any) -> None:
            honest(self, **{name: value for name, value in flags.items() if name not in arguments})

        return wrong

    return TransformerPolicy, "__init__", make


def _answering(method: str, edit: Any) -> Patch:
    def make(honest: Any) -> Any:
        return lambda self: edit(honest(self))

    return AnatomyPolicy, method, make


def _swapped(right: NormTensors) -> NormTensors:
    return NormTensors(*right[2:], *right[:2])


def _without_biases(right: MLPTensors) -> MLPTensors:
    return right._replace(intermediate_bias=None, output_bias=None)


def _miscounted(right: HiddenHeads) -> HiddenHeads:
    return right._replace(hidden_size=right.hidden_size * 2)


def _dense_is_qkv(right: AttentionTensors) -> AttentionTensors:
    return right._replace(dense_weight=right.qkv_weight)


def _fault(id: str, rows: str, source: str, breaks: str, patch: Patch, applies: Applies = layered) -> Fault:
    return seeded("methods", id, rows, source, breaks, patched(patch), applies=applies, expects=("contract",))


def _fuses(traits: Traits) -> bool:
    return traits.any_block(lambda one: not isinstance(one.qkv, SplitQKV))


def _transposes(traits: Traits) -> bool:
    return traits.any_block(lambda one: one.out.transposed)


def _interleaves(traits: Traits) -> bool:
    from policies.anatomy import FusedQKV, QKVLayout

    return traits.any_block(lambda one: isinstance(one.qkv, FusedQKV) and one.qkv.layout is QKVLayout.INTERLEAVED)


def _post_norms(traits: Traits) -> bool:
    from policies.anatomy import NormPosition

    return any(one.norm_position is NormPosition.POST for one in traits.anatomies)


METHODS = (
    _fault(
        "M20 comma",
        "M20 F26",
        "DeepSpeed PR #3608",
        "A missing comma makes one checkpoint name of two.",
        _renamed(_missing_comma),
    ),
    _fault(
        "F28 copied",
        "F28 M20",
        "DeepSpeed 0.7.7 GPT-Neo policy",
        "Checkpoint names are a copy of another policy's.",
        _renamed(_another_policys),
    ),
    _fault(
        "F27 prefix",
        "F27",
        "DeepSpeed PR #2990",
        "The first part of each checkpoint name is skipped.",
        _renamed(_without_prefix),
    ),
    _fault(
        "M20 twice",
        "M20 F27",
        "DeepSpeed PR #3885",
        "A parameter is named twice and another not at all.",
        _renamed(lambda names: (names[0], *names[:-1])),
    ),
    _fault(
        "M26 split_qkv",
        "M26 F29",
        "DeepSpeed 0.7.7 GPT-NeoX policy",
        "split_qkv is taken by the constructor and not handed on.",
        _not_forwarded("split_qkv"),
        _fuses,
    ),
    _fault(
        "M26 megatron_v2",
        "M26 F19",
        "DeepSpeed PR #2579",
        "megatron_v2 is never passed to the base class.",
        _not_forwarded("megatron_v2"),
        _interleaves,
    ),
    _fault(
        "M26 linear_layer",
        "M26",
        "DeepSpeed 0.7.7 policies",
        "linear_layer keeps the base class's default.",
        _not_forwarded("linear_layer"),
        _transposes,
    ),
    _fault(
        "M26 pre_attn_norm",
        "M26 F10",
        "DeepSpeed PR #2541",
        "pre_attn_norm keeps the base class's default.",
        _not_forwarded("pre_attn_norm"),
        _post_norms,
    ),
    _fault(
        "M26 inference",
        "M26",
        "DeepSpeed 0.7.7 policies",
        "inference keeps the base class's default.",
        _not_forwarded("inference"),
    ),
    _fault(
        "F26 layerNorm",
        "F26",
        "DeepSpeed PR #3608",
        "layerNorm() returns the layer's norms in the wrong order.",
        _answering("layerNorm", _swapped),
        lambda traits: any(one.mlp_norm is not None for one in traits.anatomies),
    ),
    _fault(
        "F30 mlp",
        "F30",
        "diffusers PR #6571",
        "mlp() returns no biases.",
        _answering("mlp", _without_biases),
        lambda traits: any(one.mlp.down.bias is not None for one in traits.anatomies),
    ),
    _fault(
        "F39 hidden",
        "F39",
        "DeepSpeed PR #7443",
        "get_hidden_heads() reads an attribute that means something else by now.",
        _answering("get_hidden_heads", _miscounted),
    ),
    _fault(
        "F25 dense",
        "F25",
        "DeepSpeed PR #3844",
        "attention() returns the QKV weight in the place of the output projection's.",
        _answering("attention", _dense_is_qkv),
    ),
)
"""Wrong answers of policies."""
