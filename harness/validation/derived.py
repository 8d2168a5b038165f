"""The case that a derivation describes. It is rebuilt from the description in every process that checks."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from ..case import Example, Inputs, Value, Workload
from ..hf import inputs as hf
from ..hf.case import TransformersCase, attention_implementation
from ..hf.rotary import rope_parameters
from .derivation import CHANNELS, Derivation
from .fields import FULL, SLIDING
from .workload import default_workloads, layer_and_call

DECODER = "config is_decoder"
CROSSING = "config add_cross_attention"
DROPOUT = 0.1
PATCH = 4
"""Pixels a side of a patch of image models."""


def config_values(derivation: Derivation, example: Example | None = None) -> dict[str, Any]:
    """Arguments of the configuration for ``example`` (default: the simplest)."""
    example = Example({axis.name: axis.simplest for axis in derivation.axes}, 0) if example is None else example
    values: dict[str, Any] = dict(example.values)
    heads = values["kv_heads"] * values["group"] if "kv_heads" in values else values.get("heads", 1)
    size: Any = values["head_size"]
    hidden = heads * 2 * values["hidden_factor"] if values.get("hidden_factor") else heads * size
    by_role: dict[str, Any] = {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": values.get("kv_heads", heads),
        "head_size": size,
        "inner": values.get("inner"),
        "layers": values.get("layers"),
        "activation": values.get("activation"),
        "eps": values.get("eps"),
        "positions": hf.POSITIONS if derivation.image else hf.positions(example),
        "vocabulary": hf.VOCABULARY,
        "window": values.get("window"),
        "windowed": values.get("window") is not None,
        "kinds": [FULL if values.get("window") is None or index % 2 else SLIDING for index in range(values.get("layers", 1))],
        "rotary_elements": 2,
    }
    if "rope" in derivation.fields:
        by_role["rope"] = _rope(values, size)
    drawn = {name: by_role[role] for role, names in derivation.fields.items() for name in names if role in by_role}
    extras = {name.removeprefix("config "): value for name, value in values.items() if name.startswith("config ")}
    if DECODER in values:
        extras["is_decoder"] = _decodes(values)
    return (
        drawn
        | extras
        | _FIXED
        | dict.fromkeys(derivation.dropouts, DROPOUT)
        | ({"image_size": 2 * PATCH, "patch_size": PATCH} if derivation.image else {})
    )


def _decodes(values: Mapping[str, Value]) -> bool:
    """Whether the model is a decoder, which one with cross-attention has to be."""
    return DECODER in values and bool(values[DECODER] or values.get(CROSSING))


_FIXED = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "experts_implementation": "eager"}
"""Of the ways in which transformers multiplies by experts, grouped products know no float64."""


def _rope(values: Any, size: int) -> dict[str, Any]:
    share = values.get("rotary_share", 1.0)
    turned = max(2, int(size * share) // 2 * 2)
    return rope_parameters(values["rope"], turned) | {"partial_rotary_factor": turned / size}


class DerivedCase(TransformersCase):
    """Examples of the model that contains a layer class, as ``derivation`` describes them."""

    def __init__(self, derivation: Derivation) -> None:
        self.derivation = derivation
        # A case's facts are those of its class elsewhere; here each instance has its own.
        facts: dict[str, Any] = {
            "name": derivation.name,
            "title": f"{derivation.name} (derived)",
            "axes": derivation.axes,
            "configuration": derivation.config,
            "model": derivation.model,
            "layer": derivation.layer,
            "sdpa": derivation.sdpa,
            "causal": derivation.causal,
            "cached": derivation.cached,
            "static_cache": derivation.cached,
        }
        vars(self).update(facts)

    @property
    def made_with(self) -> tuple[Derivation]:
        return (self.derivation,)

    def with_those_drawn(self, **wanted: Value) -> Example:
        """The simplest example with those of ``wanted`` that are values of its axes."""
        drawn = {axis.name: wanted[axis.name] for axis in self.axes if axis.name in wanted and wanted[axis.name] in axis.values}
        return Example({**self.simplest.values, **drawn}, self.simplest.seed)

    def apart(self, example: Example) -> Example:
        """``example``, with the last of any values that do not go together back at its simplest."""
        simplest = {axis.name: axis.simplest for axis in self.axes}
        for together in self.derivation.kept_apart:
            if all(example.values.get(name) == value for name, value in together):
                example = example.with_value(together[-1][0], simplest[together[-1][0]])
        return example

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        return super().build(self.apart(example), **overrides)

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return config_values(self.derivation, example)

    def make(self, config: Any, example: Example) -> nn.Module:
        cls = resolve_name(self.model)
        try:
            model: nn.Module = cls(config, add_pooling_layer=False)
        except TypeError:
            model = cls(config)
        return model

    def is_causal(self, example: Example) -> bool:
        example = self.apart(example)
        return self.derivation.causal_if_decoder if _decodes(example.values) else self.derivation.causal

    def caches(self, example: Example) -> bool:
        return self.cached and self.is_causal(example)

    def expected(self, example: Example) -> int:
        layers = self.apart(example).values.get("layers", 1)
        return self.derivation.layers_of[int(str(layers))]

    def inputs(self, example: Example) -> Inputs:
        example = self.apart(example)
        if self.derivation.image:
            generator = torch.Generator().manual_seed(example.seed + 2)
            side = 2 * PATCH
            return Inputs(kwargs={"pixel_values": torch.randn(example["batch"], CHANNELS, side, side, generator=generator)})
        inputs = super().inputs(example)
        if not example.values.get(CROSSING):
            return inputs
        width = config_values(self.derivation, example)[self.derivation.fields["hidden"][0]]
        return Inputs(kwargs=inputs.kwargs | hf.encoder_states(example, width), valid=inputs.valid)

    @property
    def workloads(self) -> tuple[Workload, ...]:  # type: ignore[override]
        return default_workloads(self.derivation)

    def workload_module(self, workload: Workload) -> nn.Module:
        return layer_and_call(self.derivation, workload, "sdpa")[0]

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        implementation = attention_implementation(module)
        return layer_and_call(self.derivation, workload, implementation or "sdpa")[1]
