"""megatron-core: its transformer block of the local spec, on a CPU (see ``megatron_cpu`` for what stands in).

Shapes: B batch, T tokens, D hidden size, R rotated elements of a head. Megatron's own order is (T, B, D).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from harness.case import Axis, Case, Example, Inputs, Refusal, Workload, flag
from harness.hf.inputs import (
    BATCH,
    LARGE_HEADS,
    LARGE_INNER,
    LARGEST_HEADS,
    LARGEST_INNER,
    MOST_SKIPPED,
    ROW_POSITIONS,
    row_positions,
)
from harness.randomise import randomise

from .megatron_cpu import core, megatron_alone, process_groups, quietly
from .megatron_refused import refusals

LAYER = "transformer.transformer_layer"
ROTATED = {"none": 0.0, "whole": 1.0, "half": 0.5, "quarter": 0.25}
QUIET = 0.02
"""Scale of every fifth token, in whose variance a norm's eps has weight."""

GPT_345M = {"hidden_size": 1024, "num_attention_heads": 16, "activation": "gelu"}
GPT_1_3B = {"hidden_size": 2048, "num_attention_heads": 16, "activation": "gelu"}
LLAMA_1B = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_query_groups": 8,
    "ffn_hidden_size": 8192,
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation": "silu",
    "add_bias_linear": False,
    "rotary": 64,
}


class Decoder(nn.Module):
    """A transformer block with rotary positions or none, called with the batch first.

    Megatron counts every row's positions alike where they are one number; where they are several, as in an image (its
    ``MultimodalRotaryEmbedding``), each row has angles of its own.
    """

    def __init__(self, block: nn.Module, rotary: nn.Module | None) -> None:
        super().__init__()
        self.block = block
        self.rotary = rotary

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). ``attention_mask`` is (B or 1, 1, T or 1, T) bool, True where masked; ``position_ids`` (B, T),
        where rows are not counted alike."""
        angles = None
        if isinstance(self.rotary, nn.Module):
            # Its forward would keep every table in a cache that outlives the model.
            table: Callable[[int], Tensor] = self.rotary.get_emb  # type: ignore[assignment]
            longest = hidden_states.shape[1] + MOST_SKIPPED
            angles = table(hidden_states.shape[1]) if position_ids is None else table(longest)[position_ids.T, 0]
        hidden = hidden_states.transpose(0, 1).contiguous()
        out: Tensor = self.block(hidden_states=hidden, attention_mask=attention_mask, rotary_pos_emb=angles)
        return out.transpose(0, 1)


class MegatronCase(Case):
    name = "megatron"
    title = "megatron-core transformer layer"
    input_axes = ("batch", "tokens", "mask", "positions")
    axes = (
        Axis("groups", (1, 2, 3, 4, 5, 6), large=(1, 2), largest=(40, 71)),
        Axis("queries_per_group", (1, 2, 3, 5), large=(1, 2), largest=(16, 71)),
        Axis("head_size", (4, 2, 3, 5, 8, 16), large=LARGE_HEADS, largest=LARGEST_HEADS),
        Axis("hidden", (None, 8, 15, 26, 40), large=(None, 520, 1100), largest=(4200, 8200)),
        Axis("ffn", (8, 5, 19, 32, 51), claimed=False, large=LARGE_INNER, largest=LARGEST_INNER),
        Axis("layers", (1, 2, 3)),
        BATCH,
        Axis("tokens", (4, 1, 2, 3, 7, 11, 136)),
        Axis("normalization", ("LayerNorm", "RMSNorm")),
        Axis("eps", (1e-5, 1e-6, 1e-3, 1e-1)),
        flag("gated", simplest=False),
        Axis("activation", ("gelu", "silu", "relu", "squared_relu", "quick_gelu", "fast_gelu", "gelu_tanh", "tanh")),
        flag("bias_activation_fusion", simplest=False),
        flag("bias", simplest=True),
        flag("qkv_bias", simplest=False),
        Axis("rotary", tuple(ROTATED)),
        Axis("rotary_base", (10000, 71)),
        ROW_POSITIONS,
        flag("rotary_interleaved", simplest=False),
        flag("rope_scaling", simplest=False),
        flag("first_layer_without_rotary", simplest=False),
        Axis("qk_norm", ("none", "norm", "l2")),
        Axis("mask_type", ("causal", "padding", "arbitrary")),
        Axis("mask", ("none", "causal", "right", "left", "interior", "random")),
        Axis("window", (None, 0, 1, 3)),
        Axis("window_skip", (None, 2)),
        Axis("softmax_scale", (None, 0.3, 0.7)),
        flag("layer_scaling", simplest=False),
    )
    workloads = (
        Workload(name="gpt-345m", phase="prefill", batch=1, tokens=128, config=GPT_345M, weight_bytes=50_400_000),
        Workload(name="gpt-345m", phase="prefill", batch=4, tokens=128, config=GPT_345M, weight_bytes=50_400_000),
        Workload(name="gpt3-1.3b", phase="prefill", batch=1, tokens=128, config=GPT_1_3B, weight_bytes=201_500_000),
        Workload(name="llama-3.2-1b", phase="prefill", batch=1, tokens=128, config=LLAMA_1B, weight_bytes=243_300_000),
    )

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        """See ``Case.build``; ``overrides`` go to the configuration."""
        with megatron_alone(), quietly():
            config = core("transformer.transformer_config").TransformerConfig(**{**self._config_kwargs(example), **overrides})
            block = core("transformer.transformer_block").TransformerBlock(
                config, _spec(example, config), pg_collection=process_groups()
            )
            model = Decoder(block, _rotary(example, config)).eval()
        return randomise(model, example.seed)

    def _config_kwargs(self, example: Example) -> dict[str, Any]:
        heads = example["groups"] * example["queries_per_group"]
        hidden = example["hidden"]
        activation = example["activation"]
        skip = example["first_layer_without_rotary"]
        return {
            "num_layers": example["layers"],
            "hidden_size": hidden or heads * example["head_size"],
            "num_attention_heads": heads,
            "num_query_groups": example["groups"],
            "kv_channels": example["head_size"] if hidden else None,
            "ffn_hidden_size": example["ffn"],
            "normalization": example["normalization"],
            "layernorm_epsilon": example["eps"],
            "gated_linear_unit": example["gated"],
            "activation_func": activation_function(activation),
            "bias_activation_fusion": _fuses(example),
            "add_bias_linear": example["bias"],
            "add_qkv_bias": example["qkv_bias"],
            "rotary_interleaved": example["rotary_interleaved"],
            "no_rope_freq": [int(index == 0) for index in range(example["layers"])] if skip else None,
            "window_size": None if example["window"] is None else (example["window"], 0),
            "window_attn_skip_freq": example["window_skip"],
            "softmax_scale": example["softmax_scale"],
            "apply_query_key_layer_scaling": example["layer_scaling"],
            **_ON_A_CPU,
        }

    def inputs(self, example: Example) -> Inputs:
        generator = torch.Generator().manual_seed(example.seed + 1)
        heads = example["groups"] * example["queries_per_group"]
        width = example["hidden"] or heads * example["head_size"]
        hidden = torch.randn(example["batch"], example["tokens"], width, generator=generator)
        hidden[:, ::5] *= QUIET
        mask = padded_mask(example, generator)
        return Inputs(kwargs={"hidden_states": hidden, "attention_mask": mask, **row_positions(example)})

    def expected(self, example: Example) -> int:
        layers: int = example["layers"]
        return layers

    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return {"hidden_states": model(**inputs.kwargs)}

    def refusals(self) -> tuple[Refusal, ...]:
        return refusals(self)

    def workload_module(self, workload: Workload) -> nn.Module:
        given = {**workload.config}
        given.pop("rotary", None)
        specs = core("models.gpt.gpt_layer_specs")
        with megatron_alone(), quietly():
            config = core("transformer.transformer_config").TransformerConfig(
                num_layers=1, activation_func=activation_function(given.pop("activation")), **given, **_ON_A_CPU
            )
            spec = specs.get_gpt_layer_local_spec(normalization=config.normalization)
            layer = core("transformer.spec_utils").build_module(
                spec, config=config, layer_number=1, pg_collection=process_groups()
            )
        return randomise(layer.eval(), 0)

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        hidden = torch.randn(workload.tokens, workload.batch, workload.config["hidden_size"])
        call: dict[str, Any] = {"hidden_states": hidden, "attention_mask": None}
        size = workload.config.get("rotary")
        if size:
            steps = torch.arange(0, size, 2) / size
            angles = torch.outer(torch.arange(workload.tokens, dtype=torch.float32), 10000.0**-steps)
            call["rotary_pos_emb"] = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        return call

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        with megatron_alone(self.device):
            yield


_ON_A_CPU: dict[str, Any] = {
    "use_cpu_initialization": True,
    "perform_initialization": False,
    "transformer_impl": "local",
    "cuda_graph_scope": [],
}


def activation_function(name: str) -> Any:
    """The activation as Megatron's configuration takes it."""
    if name == "gelu_tanh":
        return functools.partial(F.gelu, approximate="tanh")
    if name in ("squared_relu", "fast_gelu"):
        return getattr(core("activations"), name)
    if name == "quick_gelu":
        return core("fusions.fused_bias_geglu").quick_gelu
    return torch.tanh if name == "tanh" else getattr(F, name)


def _fuses(example: Example) -> bool:
    """Megatron has kernels that fuse bias and activation for GELU with a bias, GEGLU and SwiGLU."""
    kernels = {"gelu": example["gated"] or example["bias"], "silu": example["gated"]}
    return bool(example["bias_activation_fusion"] and kernels.get(example["activation"], False))


def _spec(example: Example, config: Any) -> Any:
    spec = core("models.gpt.gpt_layer_specs").get_gpt_layer_local_spec(
        normalization=config.normalization,
        qk_layernorm=example["qk_norm"] == "norm",
        qk_l2_norm=example["qk_norm"] == "l2",
    )
    kinds = core("transformer.enums").AttnMaskType
    spec.submodules.self_attention.params["attn_mask_type"] = kinds[example["mask_type"]]
    return spec


def _rotary(example: Example, config: Any) -> nn.Module | None:
    """Megatron's rotary embedding over an even part of each head."""
    share = ROTATED[example["rotary"]]
    if not share:
        return None
    size = config.kv_channels
    rotated = max(2, 2 * int(size * share / 2))
    embedding: nn.Module = core("models.common.embeddings.rotary_pos_embedding").RotaryEmbedding(
        kv_channels=rotated,
        rotary_percent=1.0,
        rotary_interleaved=config.rotary_interleaved,
        rotary_base=example["rotary_base"],
        rope_scaling=example["rope_scaling"],
        use_cpu_initialization=True,
        cp_group=process_groups().cp,
    )
    return embedding


def padded_mask(example: Example, generator: torch.Generator) -> Tensor | None:
    """(B or 1, 1, T or 1, T) bool, True where masked. Some queries may see nothing: Megatron defines even that."""
    kind, batch, tokens = example["mask"], example["batch"], example["tokens"]
    future = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).triu(1)
    if kind == "none":
        return None
    if kind == "causal":
        return future
    if kind == "random":
        return torch.rand(batch, 1, tokens, tokens, generator=generator) < 0.4
    pads = torch.randint(0, tokens, (batch, 1), generator=generator)
    places = torch.arange(tokens)
    hidden = {
        "right": places >= tokens - pads,
        "left": places < pads,
        "interior": (places > 0) & (places < tokens - 1) & (torch.rand(batch, tokens, generator=generator) < 0.5),
    }[kind][:, None, None, :]
    return hidden | future if example["mask_type"] == "causal" else hidden
