"""One query that is given to torch's attention as several, and attention by products where there are gradients."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from policies.fused import sdpa

SIZES = st.integers(1, 5)
MASKS = ("none", "causal", "bool", "added", "added with -inf")
CLOSE = 1e-13
ONE = st.just(1)


@st.composite
def calls(draw: st.DrawFn, queries: st.SearchStrategy[int] = ONE) -> dict[str, object]:
    """Arguments of one call, float64."""
    batch, kv_heads, group, keys, size = (draw(SIZES) for _ in range(5))
    tokens = draw(queries)
    kind = draw(st.sampled_from(MASKS))
    keys = tokens if kind == "causal" else keys
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def random(*shape: int) -> Tensor:
        return 2.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    whole = (batch, kv_heads * group, tokens, keys)
    shape = tuple(size if draw(st.booleans()) else 1 for size in whole[:-1]) + whole[-1:]
    scores = random(*shape)
    mask = {
        "bool": scores > 0.0,
        "added": scores,
        "added with -inf": scores.masked_fill(scores < 0.0, -math.inf),
    }.get(kind)
    return {
        "query": random(batch, kv_heads * group, tokens, size),
        "key": random(batch, kv_heads, keys, size),
        "value": random(batch, kv_heads, keys, size),
        "attn_mask": mask,
        "is_causal": kind == "causal",
        "scale": draw(st.sampled_from((None, 0.3))),
        "enable_gqa": group > 1,
    }


@given(call=calls(), slow=st.booleans())
def test_one_query_attends_as_torch_lets_it_whatever_the_mask_and_the_groups(call: dict[str, object], slow: bool) -> None:
    with mock.patch.object(sdpa, "_slow_alone", return_value=slow):
        mine = sdpa.scaled_dot_product_attention(**call)  # type: ignore[arg-type]
    its = F.scaled_dot_product_attention(**call)  # type: ignore[arg-type]
    assert mine.shape == its.shape
    assert float((mine - its).abs().max()) <= CLOSE


@given(call=calls(queries=SIZES))
def test_attention_by_products_is_the_kernels_and_so_are_its_gradients(call: dict[str, Tensor]) -> None:
    """But for queries that see nothing, which are no numbers here and zero there."""
    learning = [call[name].requires_grad_() for name in ("query", "key", "value")]
    mine, its = sdpa.scaled_dot_product_attention(**call, eager=True), F.scaled_dot_product_attention(**call)
    seen = ~mine.detach().isnan()
    assert bool((its.detach()[~seen] == 0).all())
    if bool(seen.all()):
        assert float((mine - its).abs().max()) <= CLOSE
        for one, other in zip(*(torch.autograd.grad(side.square().sum(), learning) for side in (mine, its)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


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
        mock.patch.object(sdpa, "_without_amx", return_value=True),
        mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attend,
    ):
        sdpa.scaled_dot_product_attention(query, key, key, enable_gqa=heads != kv_heads)
    assert attend.call_args.args[0].shape[1:3] == queries
