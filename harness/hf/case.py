"""The case of one transformers architecture: a page says how to configure it and how its layers are called."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from policies.calls import CACHE_NAMES

from ..case import Case, Example, Inputs, Refusal, Workload
from ..randomise import randomise
from .inputs import VOCABULARY, attention_mask, row_positions, valid_positions
from .tampered import other_attention, tampered_layers
from .unusual import make_unusual
from .workloads import (
    FilledCache,
    allowed_keys,
    causal_mask,
    make_layer,
    on_static_cache,
    static_cache,
    steps_by_itself,
)


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
    static_cache: ClassVar[bool] = True
    input_axes = ("batch", "tokens", "padding", "mask", "positions", "source_tokens")
    speaks_transformers = True
    indexed: ClassVar[bool] = True
    """Whether a layer is constructed with its index."""
    sdpa: ClassVar[bool] = True
    """Whether transformers has an sdpa variant of this architecture."""

    @abstractmethod
    def config_kwargs(self, example: Example) -> dict[str, Any]:
        """Arguments of the configuration for ``example``."""

    def configuration_of(self, example: Example) -> str:
        return self.configuration

    def make(self, config: Any, example: Example) -> nn.Module:
        """The model itself."""
        model: nn.Module = resolve_name(self.model)(config)
        return model

    def is_causal(self, example: Example) -> bool:
        return self.causal

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        """See ``Case.build``; ``overrides`` go to the configuration."""
        from transformers.initialization import no_init_weights

        config = resolve_name(self.configuration_of(example))(**{**self.config_kwargs(example), **overrides})
        config._attn_implementation = example["attention"]
        with no_init_weights():
            model = self.make(config, example).eval()
        return make_unusual(randomise(model, example.seed), example)

    def refusals(self) -> tuple[Refusal, ...]:
        return self._tampered(None, None)

    def changed_layers(self) -> tuple[Refusal, ...]:
        """The same for a policy from outside, whose layers may do as well what one that was tampered with does."""
        return self._tampered(self.admitted(self.complete), self.simplest)

    def _tampered(self, complete: Example | None, simplest: Example | None) -> tuple[Refusal, ...]:
        tampered = tampered_layers(lambda: self.build(self.admitted(self.complete)), self.layer, complete)
        if not self.sdpa:
            return tampered
        return (*tampered, other_attention(lambda: self.build(self.simplest), self.layer, simplest))

    @property
    def complete(self) -> Example:
        """The simplest example whose layers have every part that a layer of this architecture may have."""
        return self.simplest

    def inputs(self, example: Example) -> Inputs:
        generator = torch.Generator().manual_seed(example.seed + 2)
        ids = torch.randint(3, VOCABULARY, (example["batch"], example["tokens"]), generator=generator)
        causal = self.is_causal(example)
        mask = attention_mask(example, causal=causal)
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **row_positions(example)}
        if self.caches(example):
            kwargs["use_cache"] = False
        return Inputs(kwargs=kwargs, valid=valid_positions(example, causal=causal))

    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return {"last_hidden_state": model(**inputs.kwargs).last_hidden_state}

    def expected(self, example: Example) -> int:
        layers: int = example["layers"]
        return layers

    def workload_config(self, workload: Workload) -> Any:
        config = resolve_name(self.configuration)(**workload.config)
        config._attn_implementation = "sdpa" if self.sdpa else "eager"
        return config

    def workloads_on(self, device: str) -> tuple[Workload, ...]:
        """See ``Case.workloads_on``. A step of decoding on a static cache is what graphs can replay."""
        if device != "cuda" or not self.static_cache or not steps_by_itself():
            return self.workloads
        return tuple(one for each in self.workloads for one in ((each, on_static_cache(each)) if each.past else (each,)))

    def workload_module(self, workload: Workload) -> nn.Module:
        return make_layer(resolve_name(self.layer), self.workload_config(workload), indexed=self.indexed)

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        config = self.workload_config(workload)
        hidden = torch.randn(workload.batch, workload.tokens, config.hidden_size)
        call: dict[str, Any] = {"hidden_states": hidden, "attention_mask": None}
        by_sdpa = self.sdpa and attention_implementation(module) != "eager"
        if workload.room:
            call["attention_mask"] = allowed_keys(workload) if by_sdpa else causal_mask(workload)
        elif self.causal and attention_implementation(module) == "eager":
            call["attention_mask"] = causal_mask(workload)
        if workload.past:
            call[self._cache_argument()] = self.filled_cache(module, config, workload)
        return call | self.layer_extras(config, workload, hidden)

    def workload_step(self, module: nn.Module, call: dict[str, Any]) -> Callable[[], Any]:
        """See ``Case.workload_step``. A static cache goes on by itself: before each call it is taken back, which is timed too."""
        cache = next((call[name] for name in CACHE_NAMES if name in call), None)
        if cache is None or isinstance(cache, FilledCache):
            return super().workload_step(module, call)
        length = cache.layers[0].cumulative_length
        past = int(length)

        def step() -> Any:
            length.fill_(past)
            return module(**call)

        return step

    def filled_cache(self, module: nn.Module, config: Any, workload: Workload) -> Any:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if not workload.room:
            return FilledCache(workload.batch, heads, workload.past, size)
        keys = torch.randn(workload.batch, heads, workload.past, size)
        return static_cache(config, workload, keys.to(next(module.parameters())))

    def _cache_argument(self) -> str:
        """What this release of the layer calls its cache."""
        parameters = inspect.signature(resolve_name(self.layer).forward).parameters
        return next(name for name in CACHE_NAMES if name in parameters)

    def layer_extras(self, config: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
        """What else the model hands to each layer (positions, ALiBi)."""
        return {}


def attention_implementation(module: nn.Module) -> str | None:
    """``eager`` or ``sdpa``, from the first submodule that is configured."""
    configs: list[Any] = [one.config for one in module.modules() if hasattr(one, "config")]
    return configs[0]._attn_implementation if configs else None
