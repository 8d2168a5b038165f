"""Half precision in float32: as exact as a product can be that is rounded once, and taken where it pays."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from harness.case import Case
from harness.nested import cast
from policies.fused import onednn, widened
from policies.fused.activations import KERNELS
from policies.fused.linear import Projection
from policies.replace import replace_module

from .diffusion_pairs import CASES as DIFFUSION

pytestmark = [
    pytest.mark.usefixtures("no_gradients"),
    pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were"),
]
HALF = st.sampled_from(widened.HALVES)
LAYOUTS = {
    "by rows": lambda weight: weight,
    "by columns": lambda weight: weight.t().contiguous().t(),
    "some columns": lambda weight: torch.cat([weight, weight], dim=1)[:, : weight.shape[1]],
}


def rounded_once(mine: Tensor, exact: Tensor) -> bool:
    """Whether ``mine`` is ``exact``, of float64, to the last place of its dtype; what float32 loses is no part of that."""
    eps = torch.finfo(mine.dtype).eps
    return bool(((mine.double() - exact).abs() <= 0.51 * eps * exact.abs() + 1e-4 * exact.abs().max()).all())


@settings(max_examples=40)
@given(
    dtype=HALF,
    rows=st.sampled_from(((1, 8), (2, 3, 5), (40,))),
    inputs=st.integers(1, 40),
    outputs=st.sampled_from((1, 7, widened.BLOCK - 1, widened.BLOCK, 2 * widened.BLOCK + 3)),
    bias=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    seed=st.integers(0, 1000),
)
def test_a_widened_product_is_rounded_once(
    dtype: torch.dtype, rows: tuple[int, ...], inputs: int, outputs: int, bias: bool, layout: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, weight, residual = draw(*rows, inputs), LAYOUTS[layout](draw(outputs, inputs)), draw(*rows, outputs)
    shift = draw(outputs) if bias else None
    exact = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    before = residual.clone()
    assert rounded_once(widened.linear(x, weight, shift), exact)
    assert rounded_once(widened.add(x, weight, shift, residual), exact + residual.double())
    for kind in onednn.POST_OPERATIONS:
        assert rounded_once(widened.activate(x, weight, shift, kind), KERNELS[kind](exact))
    assert torch.equal(residual, before)


@pytest.mark.parametrize("dtype", [*widened.HALVES, torch.float32], ids=str)
@pytest.mark.parametrize(("rows", "many"), [(widened.ROWS, True), (widened.ROWS - 1, False)])
@pytest.mark.parametrize("processor", ["that has none", "that multiplies half precision"])
def test_many_rows_are_widened_where_a_processor_multiplies_no_half_precision(
    dtype: torch.dtype, rows: int, many: bool, processor: str
) -> None:
    lacks = processor == "that has none"
    linear = nn.Linear(24, 16, dtype=dtype)
    projection = Projection("up", linear.weight, linear.bias, onednn=True)
    x = torch.randn(rows, 24).to(dtype)
    with (
        mock.patch.object(widened, "slow", return_value=lacks),
        mock.patch.object(onednn, "suits", lambda x, *others: x.dtype is torch.float32),
        mock.patch.object(widened, "linear", wraps=widened.linear) as spied,
    ):
        result = projection(x, lambda name, stage: None)
    torch.testing.assert_close(result, linear(x), atol=0.02, rtol=0.02)
    assert spied.called is (lacks and many and dtype is not torch.float32)


def test_what_is_differentiated_or_cast_is_left_to_torch() -> None:
    x, weight = torch.randn(16, 8).half(), torch.randn(4, 8).half()
    with mock.patch.object(widened, "slow", return_value=True):
        assert widened.suits(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not widened.suits(x, weight)
        with torch.enable_grad():
            assert not widened.suits(x, weight.requires_grad_())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 60000.0])
def test_what_is_not_finite_stays_so(value: float) -> None:
    """As does what becomes too large for float16 in the end."""
    x, weight = torch.full((8, 4), value).half(), torch.ones(2, 4).half()
    expected: Any = F.linear(x, weight)
    assert torch.equal(widened.linear(x, weight, None).nan_to_num(5.0), expected.nan_to_num(5.0))


@pytest.mark.parametrize("dtype", widened.HALVES, ids=str)
@pytest.mark.parametrize("case", DIFFUSION, ids=lambda case: case.name)
def test_a_diffusion_model_of_half_precision_convolves_in_float32_and_gives_its_own_dtype(case: Case, dtype: torch.dtype) -> None:
    original = case.build(case.simplest).to(dtype)
    replaced = copy.deepcopy(original)
    replace_module(replaced)
    inputs = cast(case.inputs(case.simplest), dtype)
    with (
        mock.patch.object(widened, "slow", return_value=True),
        mock.patch.object(F, "conv2d", wraps=F.conv2d) as convolution,
    ):
        mine = case.run(replaced, inputs)["sample"]
    its = case.run(original, inputs)["sample"]
    assert {call.args[0].dtype for call in convolution.call_args_list} == {torch.float32}
    assert (mine.dtype, mine.stride()) == (its.dtype, its.stride())
    assert (mine.double() - its.double()).abs().max() <= 0.1 * its.double().abs().max()
