"""What the cases of transformers models share: padding, masks, and the axes that every one of them draws.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.case import Axis, Case, Example, Inputs, Refusal, Workload
from harness.randomise import randomise

from .tampered import tampered_layers
from .workloads import FilledCache, causal_mask, make_layer

VOCABULARY = 37
POSITIONS = 24

HEADS = Axis("heads", (2, 1, 3, 4, 5, 6, 8, 12))
HEAD_SIZES = Axis("head_size", (4, 2, 6, 8, 10), claimed=False)
"""Even, because rotary positions pair elements."""
ODD_HEAD_SIZES = Axis("head_size", (4, 3, 5, 7, 8), claimed=False)
LAYERS = Axis("layers", (1, 2, 3))
BATCH = Axis("batch", (1, 2, 3, 4))
TOKENS = Axis("tokens", (3, 1, 2, 4, 5, 7, 11))
INNER = Axis("inner", (8, 5, 16, 31, 48), claimed=False)
EPS = Axis("eps", (1e-5, 1e-12, 1e-6, 1e-3, 1e-1))
IMPLEMENTATION = Axis("attention", ("sdpa", "eager"))
PADDING = Axis("padding", ("none", "right", "left", "interior"))
MASK = Axis("mask", ("none", "2d", "4d float", "4d bool"))
MASK_2D = Axis("mask", ("none", "2d"))
ACTIVATIONS = Axis(
    "activation",
    (
        "gelu",
        "relu",
        "gelu_new",
        "quick_gelu",
        "silu",
        "gelu_pytorch_tanh",
        "gelu_fast",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_accurate",
        "gelu_10",
        "swish",
        "mish",
        "tanh",
        "sigmoid",
        "relu2",
        "relu6",
        "leaky_relu",
        "linear",
        "laplace",
        "hardswish",
        "sqrtsoftplus",
        "prelu",
    ),
)
"""Every activation of transformers' table, but for ``xielu``, whose constants are rounded to bfloat16."""

SIZES = (LAYERS, BATCH, TOKENS, PADDING)
COMMON = (*SIZES, MASK)
EAGER_ONLY = Axis("attention", ("eager",))


def padding_mask(example: Example) -> Tensor:
    """(B, T) int64, 1 where a token is real. Each row keeps at least one token; rows differ where they can."""
    batch, tokens = example["batch"], example["tokens"]
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    generator = torch.Generator().manual_seed(example.seed + 1)
    for row in range(batch):
        pads = int(torch.randint(0, tokens, (), generator=generator))
        if example["padding"] == "right":
            mask[row, tokens - pads :] = 0
        elif example["padding"] == "left":
            mask[row, :pads] = 0
        elif example["padding"] == "interior" and tokens > 2:
            hidden = 1 + torch.randperm(tokens - 2, generator=generator)[: max(pads - 1, 0)]
            mask[row, hidden] = 0
    return mask


def attention_mask(example: Example, *, causal: bool, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """The mask in the form that the example's ``mask`` axis asks for: None, (B, T) int64, or (B, 1, T, T).

    A bool mask is given to sdpa only; eager attention adds what it is given, so it gets the floats.
    """
    form = example["mask"]
    if form == "none":
        return None
    keep = padding_mask(example)
    if form == "2d":
        return keep
    allowed = keep.bool()[:, None, None, :].expand(-1, 1, keep.shape[1], -1)
    if causal:
        allowed = allowed & torch.ones(keep.shape[1], keep.shape[1], dtype=torch.bool).tril()
    if form == "4d bool" and example["attention"] == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def valid_positions(example: Example, *, causal: bool) -> Tensor | None:
    """(B, T) bool: positions whose output is defined, or None where all are. A padded position has none, and neither
    has a real one that may attend to nothing."""
    if example["mask"] == "none" or example["padding"] == "none":
        return None
    keep = padding_mask(example).bool()
    return keep & (keep.cumsum(1) > 0) if causal else keep


class TransformersCase(Case):
    """A case of one transformers architecture. A page says how to configure it and how its layers are called."""

    configuration: ClassVar[str]
    """``module:Class`` of the configuration."""
    model: ClassVar[str]
    """``module:Class`` of the model."""
    layer: ClassVar[str]
    """``module:Class`` of the layer, for workloads."""
    causal: ClassVar[bool] = True
    cached: ClassVar[bool] = True
    input_axes = ("batch", "tokens", "padding", "mask", "source_tokens")
    speaks_transformers = True
    indexed: ClassVar[bool] = True
    """Whether a layer is constructed with its index."""
    sdpa: ClassVar[bool] = True
    """Whether transformers has an sdpa variant of this architecture."""
    cache_argument: ClassVar[str] = "past_key_values"

    @abstractmethod
    def config_kwargs(self, example: Example) -> dict[str, Any]:
        """Arguments of the configuration for ``example``."""

    def configuration_of(self, example: Example) -> str:
        return self.configuration

    def make(self, config: Any, example: Example) -> nn.Module:
        """The model itself."""
        model: nn.Module = load(self.model)(config)
        return model

    def is_causal(self, example: Example) -> bool:
        return self.causal

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        """See ``Case.build``; ``overrides`` go to the configuration."""
        from transformers.initialization import no_init_weights

        config = load(self.configuration_of(example))(**{**self.config_kwargs(example), **overrides})
        config._attn_implementation = example["attention"]
        with no_init_weights():
            model = self.make(config, example).eval()
        return randomise(model, example.seed)

    def refusals(self) -> tuple[Refusal, ...]:
        return tampered_layers(lambda: self.build(self.simplest), self.layer)

    def inputs(self, example: Example) -> Inputs:
        generator = torch.Generator().manual_seed(example.seed + 2)
        ids = torch.randint(3, VOCABULARY, (example["batch"], example["tokens"]), generator=generator)
        causal = self.is_causal(example)
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention_mask(example, causal=causal)}
        if self.caches(example):
            kwargs["use_cache"] = False
        return Inputs(kwargs=kwargs, valid=valid_positions(example, causal=causal))

    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return {"last_hidden_state": model(**inputs.kwargs).last_hidden_state}

    def expected(self, example: Example) -> int:
        layers: int = example["layers"]
        return layers

    def workload_config(self, workload: Workload) -> Any:
        config = load(self.configuration)(**workload.config)
        config._attn_implementation = "sdpa" if self.sdpa else "eager"
        return config

    def workload_module(self, workload: Workload) -> nn.Module:
        return make_layer(load(self.layer), self.workload_config(workload), indexed=self.indexed)

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        config = self.workload_config(workload)
        hidden = torch.randn(workload.batch, workload.tokens, config.hidden_size)
        call: dict[str, Any] = {"hidden_states": hidden, "attention_mask": None}
        if self.causal and attention_implementation(module) == "eager":
            call["attention_mask"] = causal_mask(workload)
        if workload.past:
            call[self.cache_argument] = self.filled_cache(config, workload)
        return call | self.layer_extras(config, workload, hidden)

    def filled_cache(self, config: Any, workload: Workload) -> FilledCache:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return FilledCache(workload.batch, heads, workload.past, size)

    def layer_extras(self, config: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
        """What else the model hands to each layer (positions, ALiBi)."""
        return {}


def attention_implementation(module: nn.Module) -> str | None:
    """``eager`` or ``sdpa``, from the first submodule that is configured."""
    return next((one.config._attn_implementation for one in module.modules() if hasattr(one, "config")), None)


def load(path: str) -> Any:
    """The object behind ``module:name``."""
    from importlib import import_module

    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def encoder_states(example: Example, width: int) -> dict[str, Tensor]:
    """States (B, S, ``width``) and padding mask (B, S) for cross-attention; every source keeps its first token."""
    batch, source = example["batch"], example["source_tokens"]
    generator = torch.Generator().manual_seed(example.seed + 3)
    mask = torch.rand(batch, source, generator=generator) < 0.7
    mask[:, 0] = True
    states = torch.randn(batch, source, width, generator=generator)
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask.long()}


def quiet_transformers() -> None:
    """transformers warns about odd configurations, which is what cases draw."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
