"""The older Megatron layer, known by its name and its parts: see ``megatron_miniature``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from harness.case import Axis, Case, Example, Inputs, Refusal, flag
from harness.hf.inputs import BATCH, LARGE_HEADS, LARGE_INNER, LARGEST_HEADS, LARGEST_INNER
from harness.hf.tampered import AdaptedLinear, count_heads_otherwise
from harness.randomise import randomise

from .megatron import QUIET, padded_mask
from .megatron_miniature import Options, ParallelTransformerLayer

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}


class Stack(nn.Module):
    """Layers one after the other, called with the batch first."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = hidden_states.transpose(0, 1).contiguous()
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return hidden.transpose(0, 1)


class OlderMegatronCase(Case):
    name = "megatron_older"
    title = "Megatron-LM parallel transformer layer"
    input_axes = ("batch", "tokens", "mask")
    axes = (
        Axis("version", (2, 0)),
        Axis("groups", (1, 2, 3, 5), large=(1, 2), largest=(40, 71)),
        Axis("queries_per_group", (1, 2, 3), large=(1, 2), largest=(16, 71)),
        Axis("head_size", (4, 3, 8), large=LARGE_HEADS, largest=LARGEST_HEADS),
        Axis("hidden", (8, 7, 26), large=(256, 520, 1100), largest=(4200, 8200)),
        Axis("ffn", (8, 5, 33), claimed=False, large=LARGE_INNER, largest=LARGEST_INNER),
        Axis("layers", (1, 2, 3)),
        BATCH,
        Axis("tokens", (4, 1, 2, 7, 136)),
        Axis("eps", (1e-5, 1e-12, 1e-3)),
        flag("bias", simplest=True),
        flag("gated", simplest=False),
        Axis("activation", tuple(ACTIVATIONS)),
        flag("bias_gelu_fusion", simplest=False),
        flag("layer_scaling", simplest=False),
        flag("residual_after_norm", simplest=False),
        flag("core_attention", simplest=True),
        flag("centred_norms", simplest=False),
        Axis("mask_type", ("causal", "padding")),
        Axis("mask", ("none", "causal", "right", "left", "interior", "random")),
    )

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        """See ``Case.build``; ``overrides`` are options of the layer."""
        options = Options(**{**_options(example), **overrides})
        layers: list[nn.Module] = [ParallelTransformerLayer(options, index + 1) for index in range(example["layers"])]
        return randomise(Stack(layers).eval(), example.seed)

    def inputs(self, example: Example) -> Inputs:
        generator = torch.Generator().manual_seed(example.seed + 1)
        hidden = torch.randn(example["batch"], example["tokens"], example["hidden"], generator=generator)
        hidden[:, ::5] *= QUIET
        return Inputs(kwargs={"hidden_states": hidden, "attention_mask": padded_mask(example, generator)})

    def expected(self, example: Example) -> int:
        layers: int = example["layers"]
        return layers

    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return {"hidden_states": model(**inputs.kwargs)}

    def refusals(self) -> tuple[Refusal, ...]:
        several = self.simplest.with_value("groups", 3)
        return (
            Refusal(name="alternating QKV rows", feature="its own forward", build=lambda: self.build(several, version=1)),
            Refusal(name="cross-attention", feature="inter_attention", build=self._with_cross_attention),
            Refusal(name="a forward of its own", feature="its own forward", build=self._with_other_forward),
            Refusal(name="a tuple returned", feature="returns a tuple", build=self._with_tuple),
            Refusal(name="an adapted linear", feature="AdaptedLinear", build=self._with_adapted_linear),
            Refusal(name="heads that contradict the projections", feature="heads", build=self._with_other_heads),
        )

    def _changed(self, name: str, value: Any) -> nn.Module:
        model = self.build(self.simplest)
        setattr(model.get_submodule("layers.0"), name, value)
        return model

    def _with_cross_attention(self) -> nn.Module:
        return self._changed("inter_attention", nn.Identity())

    def _with_other_forward(self) -> nn.Module:
        return self._changed("__class__", _ending_in(lambda out: out * 1.5))

    def _with_tuple(self) -> nn.Module:
        return self._changed("__class__", _ending_in(lambda out: (out, None)))

    def _with_adapted_linear(self) -> nn.Module:
        model = self.build(self.simplest)
        model.get_submodule("layers.0.mlp").dense_4h_to_h = AdaptedLinear(8, 8)
        return model

    def _with_other_heads(self) -> nn.Module:
        model = self.build(self.simplest.with_value("groups", 2))
        count_heads_otherwise(model)
        return model


def _ending_in(change: Callable[[Tensor], Any]) -> type[nn.Module]:
    """A class of the same name whose forward changes what it returns."""

    def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return change(ParallelTransformerLayer.forward(layer, *args, **kwargs))

    return type("ParallelTransformerLayer", (ParallelTransformerLayer,), {"forward": forward})


def _options(example: Example) -> dict[str, Any]:
    return {
        "hidden": example["hidden"],
        "heads": example["groups"] * example["queries_per_group"],
        "groups": example["groups"],
        "head_size": example["head_size"],
        "ffn": example["ffn"],
        "activation": ACTIVATIONS[example["activation"]],
        "version": example["version"],
        "eps": example["eps"],
        "bias": example["bias"],
        "gated": example["gated"],
        # Megatron-LM fuses GELU with its bias only where there is one and no gate.
        "bias_gelu_fusion": example["bias_gelu_fusion"] and example["bias"] and not example["gated"],
        "layer_scaling": example["layer_scaling"],
        "residual_after_norm": example["residual_after_norm"],
        "core_attention": example["core_attention"],
        "centred_norms": example["centred_norms"],
        "causal_without_mask": example["mask_type"] == "causal",
    }
