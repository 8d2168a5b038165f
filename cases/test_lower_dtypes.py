"""In the dtypes that people run, a replacement keeps what its original keeps: masks, infinities, NaN, and what a cache holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
)

import policies

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 61,
}
CONFIG: dict[type, Any] = {
    BertModel: BertConfig(**SIZES),
    LlamaModel: LlamaConfig(**SIZES),
    GPTNeoXModel: GPTNeoXConfig(**SIZES),
    OPTModel: OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=61, word_embed_proj_dim=32
    ),
    GPTNeoForCausalLM: GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        vocab_size=61,
        max_position_embeddings=64,
    ),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pair(kind: type, dtype: torch.dtype = torch.float32, plan: str = "auto") -> tuple[Any, Any]:
    """A model with large weights, and a replaced copy."""
    torch.manual_seed(3)
    original: Any = kind(CONFIG[kind]).eval()
    for parameter in original.parameters():
        parameter.normal_(std=0.4)
    original.to(dtype)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced, plan=plan)
    return original, replaced


def largest_difference(mine: torch.Tensor, its: torch.Tensor) -> float:
    return float((mine.double() - its.double()).abs().max() / mine.double().abs().max())


def test_what_two_masks_forbid_weighs_less_than_what_one_does_in_gpt_neo() -> None:
    """At positions where all is forbidden, those of padding, that decides."""
    original, replaced = pair(GPTNeoForCausalLM)
    ids = torch.randint(3, 60, (2, 7))
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    call = {"input_ids": ids, "attention_mask": padding}
    assert largest_difference(original(**call).logits, replaced(**call).logits) < 1e-5


def test_gpt_neo_generates_the_same_on_a_static_cache() -> None:
    original, replaced = pair(GPTNeoForCausalLM)
    for seed in range(4):
        torch.manual_seed(seed)
        ids = torch.randint(3, 60, (2, 6))
        asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "cache_implementation": "static"}
        mine, its = (model.generate(ids, attention_mask=torch.ones_like(ids), **asked) for model in (original, replaced))
        assert torch.equal(mine, its)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_mask_of_float32_keeps_its_digits_beside_half_precision(dtype: torch.dtype) -> None:
    """Distances as a bias, of which bfloat16 has two digits."""
    original, replaced = pair(BertModel, dtype)
    exact = copy.deepcopy(original).double()
    ids, places = torch.randint(3, 60, (2, 40)), torch.arange(40.0)
    bias = (-1.3 * (places[:, None] - places).abs()).expand(2, 1, 40, 40)
    expected = exact(ids, attention_mask=bias.double()).last_hidden_state
    mine, its = (
        (model(ids, attention_mask=bias).last_hidden_state.double() - expected).square().mean().sqrt()
        for model in (original, replaced)
    )
    assert its < 1.5 * mine


@pytest.mark.parametrize("kind", [LlamaModel, GPTNeoXModel])
def test_a_cache_that_is_filled_under_autocast_holds_what_the_originals_holds(kind: type) -> None:
    original, replaced = pair(kind)
    ids = torch.randint(3, 60, (1, 5))
    with torch.autocast("cpu", torch.bfloat16):
        mine, its = (model(ids, use_cache=True).past_key_values.layers[1] for model in (original, replaced))
    assert (mine.keys.dtype, mine.values.dtype) == (its.keys.dtype, its.values.dtype)


@pytest.mark.parametrize("plan", ["auto", "plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_relu_passes_nan_on(dtype: torch.dtype, plan: str) -> None:
    """What went wrong in a model is seen, and not taken for zero."""
    original: Any = pair(OPTModel, dtype)[0]
    layer: Any = original.decoder.layers[0]
    layer.fc1.bias[3] = torch.nan
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced, plan=plan)
    ids = torch.randint(3, 60, (1, 5))
    assert all(bool(model(ids).last_hidden_state.isnan().all()) for model in (original, replaced))


def test_scores_as_large_as_trained_layers_have_them_lose_no_more_in_bfloat16_than_the_originals() -> None:
    original, replaced = pair(BertModel, torch.bfloat16)
    for model in (original, replaced):
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == module.in_features:
                module.weight.mul_(1.5)
    exact = copy.deepcopy(original).double()
    ids = torch.randint(3, 60, (8, 128))
    expected = exact(ids).last_hidden_state
    mine, its = ((model(ids).last_hidden_state.double() - expected).square().mean().sqrt() for model in (original, replaced))
    assert its < 1.5 * mine
