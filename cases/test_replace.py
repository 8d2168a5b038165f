"""replace_module as its users call it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import policies
from cases.bert import BertCase
from cases.gpt2 import GPT2Case
from cases.gpt_neox import GPTNeoXCase
from cases.llama import LlamaCase
from cases.unet import UNetCase
from cases.vae import VAECase
from harness.case import Case
from policies.fused import onednn
from policies.plans import PlanUnavailable

CASES: tuple[Case, ...] = (BertCase(), GPT2Case(), LlamaCase())


def model_of(case: Case, **values: object) -> nn.Module:
    example = case.simplest
    for axis, value in values.items():
        example = example.with_value(axis, value)
    return case.build(example)


def test_the_handle_says_what_was_replaced() -> None:
    model = model_of(BertCase(), layers=2)
    handle = policies.replace_module(model)
    assert [one.path for one in handle.replaced] == ["encoder.layer.0", "encoder.layer.1"]
    assert {one.policy for one in handle.replaced} == {"HFBertLayerPolicy"}
    assert handle.left == ()
    assert str(handle).startswith("2 replaced, 0 left")


def test_a_model_without_known_layers_warns_and_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.warns(policies.NothingReplacedWarning, match="no layer of a kind that any policy knows"):
        handle = policies.replace_module(model)
    assert handle.replaced == ()
    assert [type(one) for one in model] == [nn.Linear, nn.ReLU]


def test_a_replaced_layer_is_still_one_of_its_class() -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    model = model_of(LlamaCase())
    before = model.layers[0]
    policies.replace_module(model)
    assert model.layers[0] is before
    assert isinstance(before, LlamaDecoderLayer)
    assert type(before) is not LlamaDecoderLayer


def test_replacing_twice_says_that_it_was_done() -> None:
    model = model_of(BertCase())
    policies.replace_module(model)
    with pytest.warns(policies.NothingReplacedWarning, match="already replaced by HFBertLayerPolicy"):
        policies.replace_module(model)


def test_one_refused_layer_does_not_keep_the_others_from_being_replaced() -> None:
    model = model_of(BertCase(), layers=3)
    model.encoder.layer[1].extra = nn.Parameter(torch.ones(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = policies.replace_module(model)
    assert [one.path for one in handle.replaced] == ["encoder.layer.0", "encoder.layer.2"]
    assert [(one.path, "extra" in one.reason) for one in handle.left] == [("encoder.layer.1", True)]


def test_a_swap_that_fails_takes_back_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from policies.fused.layer import LayerSwap

    model = model_of(BertCase(), layers=3)
    original = copy.deepcopy(model)
    install, count = LayerSwap.install, iter(range(3))

    def failing(self: LayerSwap) -> None:
        if next(count) == 2:
            raise MemoryError("no room")
        install(self)

    monkeypatch.setattr(LayerSwap, "install", failing)
    with pytest.raises(MemoryError, match="no room"):
        policies.replace_module(model)
    assert [type(one) for one in model.modules()] == [type(one) for one in original.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))


def test_an_unknown_plan_is_refused_before_anything_changes() -> None:
    model = model_of(BertCase())
    with pytest.raises(PlanUnavailable, match="there are: auto plain onednn packed graphed"):
        policies.replace_module(model, plan="fastest")
    assert type(model.encoder.layer[0]).__name__ == "BertLayer"


@pytest.mark.parametrize("plan", ["plain", "onednn", "packed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_plan_computes_the_same_in_float32(case: Case, plan: str) -> None:
    example = case.simplest.with_value("layers", 2).with_value("tokens", 7)
    model = case.build(example)
    inputs = case.inputs(example)
    with torch.no_grad(), case.surroundings():
        (expected,) = case.run(model, inputs).values()
        handle = policies.replace_module(model, plan=plan)
        (actual,) = case.run(model, inputs).values()
    assert handle.replaced
    assert plan in repr(model)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
def test_compiled_replacements_keep_to_onednn(case: Case) -> None:
    """Whole graphs, traced, functionalised and run; every linear of the layer is among them."""
    original = case.build(case.simplest)
    replaced = copy.deepcopy(original)
    handle = policies.replace_module(replaced, plan="onednn")
    inputs = case.inputs(case.simplest)
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        expected = case.run(original, inputs)
        for one in handle.replaced:
            replaced.get_submodule(one.path).compile(backend=aot_autograd(fw_compiler=backend), fullgraph=True)
        result = case.run(replaced, inputs)
    torch.compiler.reset()
    for name, tensor in expected.items():
        torch.testing.assert_close(result[name], tensor, rtol=1e-4, atol=1e-4)
    assert sum("replace_policy_harness" in target for target in seen) >= 4
    assert not any(target.startswith(("aten.addmm", "aten.mm", "aten.linear")) for target in seen)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_replacement_has_public_operators_only(strict: bool) -> None:
    case = BertCase()
    layer = case.build(case.simplest).encoder.layer[0]
    x = torch.randn(1, 3, layer.attention.self.query.in_features)
    with torch.no_grad():
        expected = layer(x)
        policies.replace_module(layer)
        program = torch.export.export(layer, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-4)
    graphs = [one.graph for one in program.graph_module.modules() if isinstance(one, torch.fx.GraphModule)]
    targets = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
    assert sum(target.startswith("aten.linear") for target in targets) >= 4
    assert not any(name in target for target in targets for name in ("mkldnn", "replace_policy_harness"))


@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
def test_the_operators_that_a_compiler_sees_are_what_they_say() -> None:
    ours = torch.ops.replace_policy_harness
    x, weight, bias, residual = torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4), torch.randn(2, 3, 4)
    torch.library.opcheck(ours.linear, (x, weight, bias, "gelu", "tanh"))
    torch.library.opcheck(ours.linear, (x, weight, None, "none", ""))
    torch.library.opcheck(ours.linear_add, (x, weight, bias, residual))


def test_a_plan_for_inference_trains_by_the_public_operators() -> None:
    case = LlamaCase()
    model = case.build(case.simplest)
    policies.replace_module(model, plan="onednn")
    (output,) = case.run(model, case.inputs(case.simplest)).values()
    output.sum().backward()
    assert all(p.grad is not None for p in model.layers.parameters())


def test_an_attention_implementation_that_is_set_later_is_followed() -> None:
    """Without a mask sdpa attends causally in GPT-NeoX, and eager attention to everything."""
    case = GPTNeoXCase()
    original = case.build(case.simplest)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    x, angles = torch.randn(1, 5, original.config.hidden_size), torch.arange(5)[None]
    call = {"position_embeddings": original.rotary_emb(x, angles)}
    outputs = {}
    for implementation in ("sdpa", "eager", "sdpa"):
        original.config._attn_implementation = replaced.config._attn_implementation = implementation
        with torch.no_grad():
            expected, outputs[implementation] = original.layers[0](x, **call), replaced.layers[0](x, **call)
        torch.testing.assert_close(outputs[implementation], expected)
    assert not torch.allclose(outputs["sdpa"], outputs["eager"])
    assert not replaced.layers[0].fused.fallbacks


def test_policies_are_listed_by_the_names_of_the_field() -> None:
    names = [policy.__name__ for policy in policies.replace_policies]
    assert names[:5] == [
        "HFBertLayerPolicy",
        "HFGPT2LayerPolicy",
        "HFGPTJLayerPolicy",
        "HFGPTNEOLayerPolicy",
        "GPTNEOXLayerPolicy",
    ]
    assert {policy.__name__ for policy in policies.generic_policies} == {"UNetPolicy", "VAEPolicy"}


def test_results_unpack_in_deepspeeds_order() -> None:
    model = model_of(GPT2Case())
    policy = policies.HFGPT2LayerPolicy(model.h[0], inference=True)
    linear, qkv, qkv_bias, dense, dense_bias, scale, megatron_v2 = policy.attention()
    assert (linear, scale, megatron_v2) == (False, True, False)
    assert qkv is model.h[0].attn.c_attn.weight
    assert dense_bias is model.h[0].attn.c_proj.bias
    assert qkv_bias is not None
    assert dense.shape == (8, 8)
    assert policy.get_hidden_heads() == (8, 2)
    assert policy.get_param_names()[-2:] == (False, False)


def test_what_a_build_of_torch_can_do_is_not_asked_in_exact_mode() -> None:
    """The probe's answer is kept for the process, so it must come out the same inside exact mode."""
    from harness.exact import exact_mode

    honest = onednn.available()
    onednn.available.cache_clear()
    with exact_mode():
        assert onednn.available() is honest


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
    from policies.fused import onednn
    from policies.fused.linear import Projection

    linear = torch.nn.Linear(width, 2000, bias=bias, dtype=dtype)
    projection = Projection("out", linear.weight, linear.bias, onednn=True)
    x, residual = torch.ones(1, width, dtype=dtype), torch.ones(1, 2000, dtype=dtype)
    with torch.no_grad(), mock.patch.object(onednn, "add", wraps=onednn.add) as add:
        result = projection.plus(x, residual, lambda name, stage: None)
        assert torch.allclose(result, residual + linear(x), atol=0.05)
    assert add.called is by_onednn


@pytest.mark.parametrize(("case", "path"), [(LlamaCase(), "layers.0"), (UNetCase(), "conv_in")], ids=["a layer", "a convolution"])
def test_what_has_wrapped_a_replaced_forward_still_works_when_it_is_reverted(case: Case, path: str) -> None:
    """Offloading and casting by layers keep a module's bound forward, and call it."""
    model, inputs = case.build(case.simplest), case.inputs(case.simplest)
    with torch.no_grad():
        expected = case.run(model, inputs)
        handle = policies.replace_module(model)
        module: Any = model.get_submodule(path)
        kept = module.forward
        module.forward = lambda *args, **kwargs: kept(*args, **kwargs)
        handle.revert()
        result = case.run(model, inputs)
    for name, tensor in expected.items():
        assert torch.equal(result[name], tensor)


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


@pytest.mark.parametrize("case", [*CASES, UNetCase(), VAECase()], ids=lambda case: case.name)
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
    model = model_of(GPT2Case()).bfloat16()
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


def test_a_weight_that_another_module_holds_too_stays_as_it_is_stored() -> None:
    model = model_of(GPT2Case(), layers=2).bfloat16()
    model.h[1].mlp.c_fc.weight = model.h[0].mlp.c_fc.weight
    policies.replace_module(model)
    assert conv1d(model).is_contiguous()
    assert model.h[0].mlp.c_proj.weight.t().is_contiguous()


def test_a_model_with_weights_by_rows_can_be_saved(tmp_path: Path) -> None:
    model = model_of(GPT2Case()).bfloat16()
    policies.replace_module(model).model.save_pretrained(tmp_path)
    assert torch.equal(conv1d(type(model).from_pretrained(tmp_path)), conv1d(model))
