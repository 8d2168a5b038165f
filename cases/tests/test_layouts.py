"""Where weights lie in memory, and what a replacement makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import policies
from cases.bert import BertCase
from cases.gpt2 import GPT2Case
from cases.llama import LlamaCase
from cases.tests.processors import processor
from cases.unet import UNetCase
from cases.vae import VAECase
from harness.case import Case
from harness.nested import cast
from policies.anatomy import Activation, ActivationKind
from policies.fused import onednn, widened
from policies.fused.linear import Projection
from policies.fused.memory import in_strides
from policies.fused.transformer import silent

GPT2 = GPT2Case()


@pytest.mark.parametrize(
    ("dtype", "width", "bias", "by_onednn"),
    [
        (torch.bfloat16, 2000, False, False),
        (torch.bfloat16, 2000, True, True),
        (torch.bfloat16, 200, False, True),
        (torch.float32, 2000, False, True),
    ],
)
def test_onednn_adds_a_residual_but_where_that_is_slower(dtype: torch.dtype, width: int, bias: bool, by_onednn: bool) -> None:
    if not onednn.multiplies(dtype):
        pytest.skip("this processor has no such product")
    linear = torch.nn.Linear(width, 2000, bias=bias, dtype=dtype)
    projection = Projection("out", linear.weight, linear.bias, onednn=True)
    x, residual = torch.ones(1, width, dtype=dtype), torch.ones(1, 2000, dtype=dtype)
    with torch.no_grad(), processor("_by_amd"), mock.patch.object(onednn, "add", wraps=onednn.add) as add:
        result = projection.plus(x, residual, lambda name, stage: None)
        assert torch.allclose(result, residual + linear(x), atol=0.05)
    assert add.called is by_onednn


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "stored", "loses"),
    [
        (1, 768, 768, "by rows", True),
        (1, 3072, 768, "by rows", False),
        (8, 768, 768, "by rows", False),
        (128, 3072, 768, "by rows", False),
        (128, 768, 3072, "by rows", True),
        (512, 3072, 768, "by rows", True),
        (1, 3072, 768, "by columns", False),
        (8, 3072, 768, "by columns", False),
        (128, 3072, 768, "by columns", True),
    ],
)
def test_on_a_processor_of_avx2_alone_many_rows_and_small_products_are_left_to_torch(
    rows: int, outputs: int, inputs: int, stored: str, loses: bool
) -> None:
    x, weight = torch.empty(rows, inputs), torch.empty(outputs, inputs)
    with processor("_narrow", "_by_amd"):
        assert onednn.loses(x, weight if stored == "by rows" else weight.t().contiguous().t()) is loses


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "stored", "active", "loses"),
    [
        (2, 8192, 2048, "by rows", True, True),
        (8, 768, 768, "by rows", True, True),
        (8, 3072, 768, "by rows", False, False),
        (128, 768, 768, "by rows", False, True),
        (128, 768, 768, "by rows", True, False),
        (512, 3072, 768, "by rows", False, True),
        (512, 3072, 768, "by rows", True, False),
        (128, 3072, 768, "by columns", True, True),
        (8, 24, 16, "by columns", False, False),
    ],
)
def test_on_a_processor_with_amx_few_rows_and_linears_by_themselves_are_left_to_torch(
    rows: int, outputs: int, inputs: int, stored: str, active: bool, loses: bool
) -> None:
    x, weight = torch.empty(rows, inputs), torch.empty(outputs, inputs)
    weight = weight if stored == "by rows" else weight.t().contiguous().t()
    with processor("_by_amx"):
        assert onednn.loses(x, weight, active=active) is loses
        few_of_a_published_layer = rows <= 32 and weight.numel() > 500_000
        assert onednn.loses(x.bfloat16(), weight.bfloat16(), active=active) is few_of_a_published_layer


@pytest.mark.parametrize(
    ("processors", "dtype", "outputs", "kind", "behind"),
    [
        (("_by_amx",), torch.float32, 2048, ActivationKind.SILU, True),
        (("_by_amx",), torch.float32, 8192, ActivationKind.SILU, False),
        (("_by_amx",), torch.float32, 24, ActivationKind.SILU, False),
        (("_by_amx",), torch.float32, 2048, ActivationKind.GELU, False),
        (("_by_amx",), torch.bfloat16, 2048, ActivationKind.SILU, False),
        ((), torch.float32, 2048, ActivationKind.SILU, False),
    ],
)
def test_silu_comes_behind_the_linear_of_a_layer_of_middling_size_in_float32_with_amx_alone(
    processors: tuple[str, ...], dtype: torch.dtype, outputs: int, kind: ActivationKind, behind: bool
) -> None:
    projection = Projection("gate", torch.zeros(outputs, 768, dtype=dtype), None, onednn=True)
    with (
        processor(*processors),
        mock.patch.object(widened, "faster", return_value=False),
        mock.patch.object(onednn, "suits", return_value=True),
        mock.patch.object(onednn, "activate", return_value=None) as by_the_linear,
    ):
        projection.activated(torch.zeros(128, 768, dtype=dtype), Activation(kind=kind, function=nn.functional.silu), silent)
    assert bool(by_the_linear.call_count) is not behind


@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
def test_what_is_fastest_is_remembered_of_each_layout_dtype_and_size_but_of_no_more_than_the_last_few() -> None:
    """A weight may be laid out anew, by whoever has it, and nobody tells."""
    asked: list[tuple[int, torch.dtype, bool]] = []

    def loses(x: Tensor, weight: Tensor, *, active: bool = False) -> bool:
        asked.append((x.shape[0], x.dtype, weight.is_contiguous()))
        return not weight.is_contiguous()

    weight = nn.Parameter(torch.ones(6, 4), requires_grad=False)
    projection = Projection("up", weight, None, onednn=True)
    ones = torch.ones(2, 4)
    with mock.patch.object(onednn, "loses", loses):
        assert projection._fastest(ones, weight).linear is onednn
        once = len(asked)
        assert projection._fastest(ones, weight).linear is onednn
        assert len(asked) == once
        weight.data = torch.ones(4, 6).t()
        assert projection._fastest(ones, weight).linear is None
        projection._fastest(ones.double(), weight)
        assert asked[once:] == [(2, torch.float32, False)] * once + [(2, torch.float64, False)] * once
        for rows in range(1, 200):
            projection(torch.ones(rows, 4), silent)
    assert len(projection._known) <= 64


@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
@pytest.mark.parametrize("narrow", [True, False])
def test_on_a_processor_of_avx2_alone_an_activation_comes_behind_the_linear(narrow: bool) -> None:
    linear = torch.nn.Linear(24, 16)
    projection = Projection("up", linear.weight, linear.bias, onednn=True)
    gelu, x = Activation(kind=ActivationKind.GELU, function=nn.GELU()), torch.randn(9, 24)
    with (
        torch.no_grad(),
        mock.patch.object(onednn, "_narrow", return_value=narrow),
        mock.patch.object(onednn, "activate", wraps=onednn.activate) as activate,
    ):
        torch.testing.assert_close(projection.activated(x, gelu, lambda name, stage: None), nn.GELU()(linear(x)))
    assert activate.called is not narrow


@pytest.mark.parametrize(
    ("laid_out", "by_onednn"),
    [
        (lambda weight: weight.clone(), True),
        (lambda weight: weight.t().contiguous().t(), True),
        (lambda weight: torch.cat([weight, weight], dim=1)[:, : weight.shape[1]], False),
    ],
    ids=["by rows", "by columns", "columns of a larger one"],
)
@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
def test_a_weight_with_gaps_in_memory_is_left_to_torch(laid_out: Callable[[Tensor], Tensor], by_onednn: bool) -> None:
    """oneDNN multiplies by it a thousand times more slowly."""
    case = BertCase()
    model, inputs = case.build(case.simplest), case.inputs(case.simplest)
    for linear in (one for one in model.modules() if isinstance(one, nn.Linear)):
        linear.weight.data = laid_out(linear.weight.data)
    policies.replace_module(model)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        case.run(model, inputs)
    assert any(event.name == "mkldnn::_linear_pointwise" for event in profile.events()) is by_onednn


@pytest.mark.parametrize("case", [BertCase(), GPT2Case(), LlamaCase(), UNetCase(), VAECase()], ids=lambda case: case.name)
@pytest.mark.parametrize("plan", ["plain", "onednn", "packed"])
def test_what_processes_share_stays_where_it_is(case: Case, plan: str) -> None:
    """Another process writes to it, or counts on it to be there once."""
    model, inputs = case.build(case.simplest), case.inputs(case.simplest)
    model.share_memory()
    at = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        expected = case.run(model, inputs)
        policies.replace_module(model, plan=plan)
        result = case.run(model, inputs)
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-3, atol=1e-4)
    for name, parameter in model.named_parameters():
        assert (type(parameter), parameter.is_shared(), parameter.data_ptr()) == (nn.Parameter, True, at[name])


def test_weights_that_a_state_dict_holds_are_joined_when_it_is_gone() -> None:
    """While it is there, what is written to it reaches the layer."""
    case = LlamaCase()
    model, inputs = case.build(case.simplest), case.inputs(case.simplest)
    other = copy.deepcopy(model)
    state = model.state_dict()
    policies.replace_module(model)
    assert "QKV packed" not in repr(model)
    for tensor in (*state.values(), *other.parameters()):
        tensor.data.mul_(1.5)
    with torch.no_grad():
        expected = case.run(other, inputs)
        torch.testing.assert_close(case.run(model, inputs), expected, rtol=1e-4, atol=1e-5)
        del state, tensor
        torch.testing.assert_close(case.run(model, inputs), expected, rtol=1e-4, atol=1e-5)
    assert "QKV packed" in repr(model)


def conv1d(model: nn.Module) -> nn.Parameter:
    return model.get_parameter("h.0.mlp.c_fc.weight")


@pytest.mark.parametrize(
    "between",
    [
        lambda model: None,
        lambda model: model.double(),
        lambda model: setattr(model.h[0].attn.c_proj, "weight", nn.Parameter(model.h[0].attn.c_proj.weight.clone())),
    ],
    ids=["as it is", "moved", "with another weight assigned"],
)
def test_a_weight_stored_by_columns_lies_by_rows_until_it_is_reverted(between: Callable[[Any], Any]) -> None:
    model = GPT2.build(GPT2.simplest).bfloat16()
    before, form, values = conv1d(model), conv1d(model).stride(), conv1d(model).detach().clone()
    handle = policies.replace_module(model)
    assert conv1d(model) is before
    assert torch.equal(before, values)
    assert before.t().is_contiguous()
    assert "weights by rows" in str(model.h[0])
    between(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]))
    assert conv1d(model).t().is_contiguous()
    handle.revert()
    assert conv1d(model).stride() == form
    assert torch.equal(conv1d(model), values.to(conv1d(model).dtype))


def test_a_weight_that_is_assigned_after_a_move_keeps_its_strides_when_the_layer_is_reverted() -> None:
    model = GPT2.build(GPT2.simplest).bfloat16()
    handle = policies.replace_module(model)
    assert "weights by rows" in str(model.h[0])
    model.double()
    model.h[0].mlp.c_fc.weight = nn.Parameter(conv1d(model).detach().t().contiguous().t())
    handle.revert()
    assert conv1d(model).t().is_contiguous()


def test_a_weight_that_another_module_holds_too_stays_as_it_is_stored() -> None:
    model = GPT2.build(GPT2.simplest.with_value("layers", 2)).bfloat16()
    model.h[1].mlp.c_fc.weight = model.h[0].mlp.c_fc.weight
    policies.replace_module(model)
    assert conv1d(model).is_contiguous()
    assert model.h[0].mlp.c_proj.weight.t().is_contiguous()


def test_a_model_with_weights_by_rows_can_be_saved(tmp_path: Path) -> None:
    model = GPT2.build(GPT2.simplest).bfloat16()
    policies.replace_module(model).model.save_pretrained(tmp_path)
    assert torch.equal(conv1d(type(model).from_pretrained(tmp_path)), conv1d(model))


@pytest.mark.parametrize(
    ("case", "name", "dtype"),
    [(GPT2, "h.0.mlp.c_fc.weight", torch.bfloat16), (VAECase(), "decoder.conv_in.weight", torch.float32)],
    ids=lambda one: getattr(one, "name", str(one)),
)
def test_a_gradient_lies_as_its_weight_does_after_a_revert_too(case: Case, name: str, dtype: torch.dtype) -> None:
    model = case.build(case.simplest).to(dtype)
    handle = policies.replace_module(model)
    output = next(iter(case.run(model, cast(case.inputs(case.simplest), dtype)).values()))
    torch.autograd.backward(output.float().square().mean())
    weight = model.get_parameter(name)
    assert weight.grad is not None
    assert not weight.is_contiguous()
    assert weight.grad.stride() == weight.stride()
    values = weight.grad.clone()
    handle.revert()
    assert weight.is_contiguous()
    assert weight.grad.is_contiguous()
    assert torch.equal(weight.grad, values)


def for_inpainting(unet: Any) -> Tensor:
    """A first convolution of nine channels, as inpainting has it; its values."""
    channels = unet.conv_in.weight.shape[0]
    unet.conv_in = nn.Conv2d(9, channels, 3, padding=1)
    return unet.conv_in.weight.detach().clone()


def test_a_convolution_that_came_later_is_saved_and_reverted_as_it_is(tmp_path: Path) -> None:
    unet: Any = UNetCase().build(UNetCase().simplest)
    handle = policies.replace_module(unet)
    values = for_inpainting(unet)
    unet.register_to_config(in_channels=9)
    unet.save_pretrained(tmp_path)
    assert torch.equal(type(unet).from_pretrained(tmp_path).conv_in.weight, values)
    assert torch.equal(unet.conv_in.weight, values)
    handle.revert()
    assert torch.equal(unet.conv_in.weight, values)
    assert unet.conv_in.weight.is_contiguous()


def test_a_weight_in_another_dtype_has_its_first_strides_after_a_revert() -> None:
    unet: Any = UNetCase().build(UNetCase().simplest)
    form = unet.conv_in.weight.stride()
    handle = policies.replace_module(unet)
    with mock.patch.object(torch.__future__, "get_overwrite_module_params_on_conversion", return_value=True):
        unet.double()
    assert unet.conv_in.weight.stride() != form
    handle.revert()
    assert unet.conv_in.weight.stride() == form


@pytest.mark.parametrize("case", [UNetCase(), VAECase()], ids=lambda one: one.name)
def test_a_memory_format_that_is_asked_for_later_stays_after_a_revert(case: Case) -> None:
    original: Any = case.build(case.simplest)
    model = copy.deepcopy(original)
    handle = policies.replace_module(model)
    for one in (original, model):
        one.to(memory_format=torch.channels_last)
    inputs = case.inputs(case.simplest)
    with torch.no_grad():
        torch.testing.assert_close(case.run(model, inputs), case.run(original, inputs), rtol=1e-4, atol=1e-5)
    handle.revert()
    strides = [[parameter.stride() for parameter in one.parameters()] for one in (original, model)]
    assert strides[0] == strides[1]


@pytest.mark.parametrize("strides", [(0, 3, 1), (8, 3, 1)])
def test_strides_in_which_values_would_overlap_are_refused(strides: tuple[int, ...]) -> None:
    values = torch.arange(18.0).view(2, 3, 3)
    assert torch.equal(in_strides(values, (9, 1, 3)), values)
    with pytest.raises(ValueError, match="values would overlap"):
        in_strides(values, strides)
