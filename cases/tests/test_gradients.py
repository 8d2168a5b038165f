"""Gradients where torch's attention kernel has none, or others than attention by products."""

from __future__ import annotations

import copy

import pytest
import torch

import policies

from .. import CASES
from .models import model_of

CAUSAL = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "bloom", "llama", "opt")


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in CAUSAL), ("gpt_neo", torch.float64)], ids=str)
def test_a_query_that_sees_nothing_passes_on_what_an_eager_original_passes_on(name: str, dtype: torch.dtype) -> None:
    """As a loss over all tokens of a batch that is padded on the left asks. In float64 GPT-Neo, which puts float32's smallest
    number over scores, attends to what comes later there; others give NaN."""
    case = next(entry for entry in CASES if entry.name == name).load()
    eager = {axis.name: "eager" for axis in case.axes if axis.name == "attention"}
    original = model_of(case, layers=2, **eager).to(dtype)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    ids = torch.arange(12).reshape(2, 6) % 7 + 3
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for model in (original, replaced):
        model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.tanh().mean().backward()
    largest = max(float(one.grad.abs().max()) for one in original.parameters() if one.grad is not None)
    for mine, its in zip(original.parameters(), replaced.parameters(), strict=True):
        torch.testing.assert_close(its.grad, mine.grad, rtol=1e-4, atol=1e-4 * largest)
