"""Attention as two products is torch's attention."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from policies.fused import onednn, products
from policies.fused.emulated import emulation

SIZES = st.integers(1, 5)
MASKS = ("none", "causal", "bool", "added", "added with -inf")
CLOSE = 1e-13


@st.composite
def calls(draw: st.DrawFn, most_queries: int = 5) -> dict[str, object]:
    """Arguments of one call, float64."""
    batch, kv_heads, group, keys, size = (draw(SIZES) for _ in range(5))
    queries = draw(st.integers(1, most_queries))
    kind = draw(st.sampled_from(MASKS))
    keys = queries if kind == "causal" else keys
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def random(*shape: int) -> Tensor:
        return 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    whole = (batch, kv_heads * group, queries, keys)
    shape = tuple(size if draw(st.booleans()) else 1 for size in whole[:-1]) + whole[-1:]
    scores = random(*shape)
    mask = {
        "bool": scores > 0.0,
        "added": scores,
        "added with -inf": scores.masked_fill(scores < 0.0, -math.inf),
    }.get(kind)
    return {
        "query": random(batch, kv_heads * group, queries, size),
        "key": random(batch, kv_heads, keys, size),
        "value": random(batch, kv_heads, keys, size),
        "attn_mask": mask,
        "is_causal": kind == "causal",
        "scale": draw(st.sampled_from((None, 0.3))),
        "enable_gqa": group > 1,
    }


@given(call=calls(), at_once=st.sampled_from((1, 60, products.SCORES_AT_ONCE)))
def test_products_give_what_torch_gives_whatever_the_mask_the_groups_and_the_heads_at_a_time(
    call: dict[str, object], at_once: int
) -> None:
    """Queries that may attend nowhere included: they get zeros, and where there are none, nobody has to look for them."""
    mask: Any = call["attn_mask"]
    blind = mask is not None and not bool((mask if mask.dtype == torch.bool else mask > -math.inf).any(dim=-1).all())
    with torch.no_grad(), emulation(), mock.patch.object(products, "SCORES_AT_ONCE", at_once):
        mine = products.scaled_dot_product_attention(**call, products=True, blind=blind)  # type: ignore[arg-type]
    its = F.scaled_dot_product_attention(**call)  # type: ignore[arg-type]
    assert mine.shape == its.shape
    assert float((mine - its).abs().max()) <= CLOSE


@given(call=calls(most_queries=1), slow=st.booleans())
def test_one_query_attends_as_torch_lets_it_whatever_the_mask_and_the_groups(call: dict[str, object], slow: bool) -> None:
    with mock.patch.object(products, "_slow_alone", return_value=slow):
        mine = products.scaled_dot_product_attention(**call)  # type: ignore[arg-type]
    its = F.scaled_dot_product_attention(**call)  # type: ignore[arg-type]
    assert mine.shape == its.shape
    assert float((mine - its).abs().max()) <= CLOSE


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dtype", "queries"),
    [
        (6, 2, torch.float32, (2, 3)),
        (2, 2, torch.bfloat16, (2, 2)),
        (2, 2, torch.float32, (2, 1)),
        (6, 2, torch.bfloat16, (2, 3)),
    ],
)
def test_one_query_is_attended_to_as_several(heads: int, kv_heads: int, dtype: torch.dtype, queries: tuple[int, int]) -> None:
    """Heads of a group are queries of their key head; in bfloat16 the query of a head by itself is there twice."""
    query, key = torch.ones(1, heads, 1, 4, dtype=dtype), torch.ones(1, kv_heads, 5, 4, dtype=dtype)
    with (
        mock.patch.object(products, "_faster", return_value=True),
        mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attend,
    ):
        products.scaled_dot_product_attention(query, key, key, enable_gqa=heads != kv_heads)
    assert attend.call_args.args[0].shape[1:3] == queries


@pytest.mark.parametrize(
    ("allowed", "dtype", "able", "many", "runs"),
    [
        (True, torch.bfloat16, {"avx512_bf16": True}, False, True),
        (False, torch.bfloat16, {"avx512_bf16": True}, False, False),
        (True, torch.float32, {"avx512_bf16": True}, False, False),
        (True, torch.bfloat16, {"avx512_bf16": True, "amx_bf16": True}, False, False),
        (True, torch.bfloat16, {}, False, False),
        (True, torch.bfloat16, {"avx512_bf16": True}, True, False),
    ],
)
def test_products_run_where_they_are_faster_and_their_scores_are_not_too_many(
    allowed: bool, dtype: torch.dtype, able: dict[str, bool], many: bool, runs: bool
) -> None:
    query = torch.ones(1, 2, 1024, 2, dtype=dtype)
    bound = 1 if many else products.SCORES_OF_A_HEAD
    products._faster.cache_clear()
    with (
        torch.no_grad(),
        mock.patch.object(onednn, "capabilities", return_value=able),
        mock.patch.object(products, "SCORES_OF_A_HEAD", bound),
        mock.patch.object(products, "_by_products", return_value=query) as by_products,
    ):
        products.scaled_dot_product_attention(query, query, query, products=allowed)
    products._faster.cache_clear()
    assert by_products.called is runs


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys", "pay"),
    [
        (12, 12, 128, 128, True),
        (12, 12, 48, 48, False),
        (12, 12, 1, 512, False),
        (12, 12, 1, 2048, True),
        (32, 8, 1, 1000, False),
        (32, 8, 1, 1024, True),
    ],
)
def test_products_run_where_they_spare_more_than_a_new_shape_costs(
    heads: int, kv_heads: int, queries: int, keys: int, pay: bool
) -> None:
    query, key = (
        torch.empty(1, heads, queries, 64, dtype=torch.bfloat16),
        torch.empty(1, kv_heads, keys, 64, dtype=torch.bfloat16),
    )
    with torch.no_grad(), mock.patch.object(products, "_faster", return_value=True):
        assert products._suit(query, key, key, None) is pay


@given(heads=st.sampled_from((1, 12)), queries=st.sampled_from((1, 128)), keys=st.integers(1, 300), seed=st.integers(0, 99))
def test_softmax_in_bfloat16_rounds_once_whatever_the_number_of_keys(heads: int, queries: int, keys: int, seed: int) -> None:
    scores = 4.0 * torch.randn(heads, queries, keys, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16)
    exact = scores.double().softmax(dim=-1)
    mine = products._softmax(scores)
    assert mine.dtype is torch.bfloat16
    assert float(((mine.double() - exact) / exact).abs().max()) <= 1.001 * 2**-8
