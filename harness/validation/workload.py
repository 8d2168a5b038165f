"""Real sizes for a derived case: one layer of the configuration's default dimensions, called as its model calls it.

A configuration's defaults are mostly those of a published model. Where one layer of it is too large to time within a
validation, widths are divided until it fits, and the workload's name says so.
"""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from ..case import Workload
from ..hf import inputs as hf
from ..randomise import randomise
from ..search import quiet
from .derivation import CHANNELS, Derivation
from .models import layers_of

LARGEST = 8_000_000
"""Parameters of the largest layer that is timed whole: a second of pairs of it carries an interval."""
TOKENS = 64
_WIDTHS = ("hidden", "inner", "heads", "kv_heads")


def default_workloads(derivation: Derivation) -> tuple[Workload, ...]:
    """One workload at the configuration's default sizes, or at a whole fraction of them."""
    name = derivation.config.partition(":")[2]
    for divisor in (1, 2, 4, 8, 16):
        values = _divided(derivation, divisor)
        if values is None:
            continue
        try:
            with quiet(), torch.device("meta"):
                layer = layers_of(_model(derivation, values, "sdpa"), derivation.layer)[0]
        except Exception:
            continue
        parameters = sum(p.numel() for p in layer.parameters())
        if parameters <= LARGEST:
            return (
                Workload(
                    name=f"{name} defaults" + (f", widths / {divisor}" if divisor > 1 else ""),
                    phase="prefill" if derivation.causal else "encoder",
                    batch=1,
                    tokens=TOKENS,
                    config=values,
                    weight_bytes=4 * parameters,
                ),
            )
    return ()


def layer_and_call(derivation: Derivation, workload: Workload, implementation: str) -> tuple[nn.Module, dict[str, Any]]:
    """The first layer of a model of these sizes with random weights, and the arguments that the model hands to it."""
    with quiet():
        model = _model(derivation, dict(workload.config), implementation).eval()
    layer = layers_of(randomise(model, 0), derivation.layer)[0]
    return layer, _recorded_call(model, layer, _inputs(derivation, workload))


def _divided(derivation: Derivation, divisor: int) -> dict[str, Any] | None:
    """The default configuration's values with one layer and widths divided; None where a width is no multiple."""
    default = resolve_name(derivation.config)()
    values: dict[str, Any] = {"vocab_size": hf.VOCABULARY} if "vocabulary" in derivation.fields else {}
    for role, names in derivation.fields.items():
        for name in names:
            value = getattr(default, name, None)
            if role == "layers":
                values[name] = 1
            elif role in _WIDTHS and isinstance(value, int) and divisor > 1:
                if value % divisor and value > divisor:
                    return None
                values[name] = max(1, value // divisor)
    return values | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


def _model(derivation: Derivation, values: dict[str, Any], implementation: str) -> nn.Module:
    config = resolve_name(derivation.config)(**values)
    config._attn_implementation = implementation
    model: nn.Module = resolve_name(derivation.model)(config)
    return model


def _inputs(derivation: Derivation, workload: Workload) -> dict[str, Any]:
    if derivation.image:
        config = resolve_name(derivation.config)(**workload.config)
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        return {"pixel_values": torch.randn(workload.batch, getattr(config, "num_channels", CHANNELS), side, side)}
    ids = torch.randint(3, hf.VOCABULARY, (workload.batch, workload.tokens))
    return {"input_ids": ids} | ({"use_cache": False} if derivation.cached else {})


def _recorded_call(model: nn.Module, layer: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments with which ``model`` calls ``layer``."""
    calls: list[dict[str, Any]] = []
    names = list(inspect.signature(layer.forward).parameters)

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append({**dict(zip(names, args)), **kwargs})

    with layer.register_forward_pre_hook(note, with_kwargs=True), quiet(), torch.no_grad():
        model(**inputs)
    return calls[0]
