"""replace_module as its users call it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import policies
from cases import CASES as EVERY_CASE
from cases.bert import BertCase
from cases.gpt2 import GPT2Case
from cases.gpt_neo import GPTNeoCase
from cases.gpt_neox import GPTNeoXCase
from cases.llama import LlamaCase
from cases.unet import UNetCase
from harness.case import Case
from harness.registry import CaseEntry

from .models import CASES, model_of
from .replicas import replica


def storages(model: nn.Module) -> list[int]:
    """Bytes of the storage of each parameter."""
    return [one.untyped_storage().nbytes() for one in model.parameters()]


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


@pytest.mark.parametrize("entry", [one for one in EVERY_CASE if one.name not in ("unet", "vae")], ids=lambda entry: entry.name)
@pytest.mark.parametrize("sharded", [torch.Tensor.flatten, lambda one: one.flatten()[:0]], ids=["flat", "on another rank"])
def test_layers_whose_weights_are_sharded_are_refused_and_said_so(entry: CaseEntry, sharded: Any) -> None:
    """As FSDP keeps them flat between calls, and ZeRO on other ranks."""
    case = entry.load()
    model = case.build(case.simplest)
    for parameter in model.parameters():
        parameter.data = sharded(parameter.data)
    with pytest.warns(policies.NothingReplacedWarning):
        handle = policies.replace_module(model)
    assert handle.left and all("features" in one.reason for one in handle.left)


def test_a_swap_that_fails_takes_back_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from policies.fused.state import FusedState

    model = model_of(BertCase(), layers=3)
    original = copy.deepcopy(model)
    bind, count = FusedState.bind, iter(range(3))

    def failing(self: FusedState, *args: Any) -> None:
        bind(self, *args)
        if next(count) == 2:
            raise MemoryError("no room")

    monkeypatch.setattr(FusedState, "bind", failing)
    with pytest.raises(MemoryError, match="no room"):
        policies.replace_module(model)
    assert [type(one) for one in model.modules()] == [type(one) for one in original.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))


def test_a_layer_that_came_to_be_refused_keeps_nothing_joined_when_it_is_reverted() -> None:
    model = model_of(BertCase())
    original = copy.deepcopy(model)
    handle = policies.replace_module(model)
    assert storages(model) != storages(original)
    layer: Any = model.encoder.layer[0]
    layer.add_module("added", nn.Linear(2, 2))
    with torch.no_grad():
        model(torch.tensor([[1, 2]]))
    assert any("added" in reason for reason in layer.fused.fallbacks)
    del layer.added
    handle.revert()
    assert storages(model) == storages(original)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_replica_computes_with_its_own_weights(case: Case) -> None:
    original = case.build(case.simplest)
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    inputs = case.inputs(case.simplest)
    with torch.no_grad():
        for scale in (1.3, 0.7):
            result, expected = (case.run(replica(one, scale), inputs) for one in (replaced, original))
            torch.testing.assert_close(result["last_hidden_state"], expected["last_hidden_state"], rtol=1e-4, atol=1e-4)


def test_a_layer_made_of_anothers_attributes_computes_with_its_own() -> None:
    original: Any = model_of(BertCase())
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    hidden = torch.randn(1, 3, original.encoder.layer[0].attention.self.query.in_features)

    def another(layer: nn.Module) -> Any:
        made = type(layer).__new__(type(layer))
        made.__dict__.update(layer.__dict__)
        made._modules = {**layer._modules, "output": copy.deepcopy(original.encoder.layer[0].output)}
        for parameter in made.output.parameters():
            parameter.mul_(1.3)
        return made

    with torch.no_grad():
        expected, result = (another(one.encoder.layer[0])(hidden) for one in (original, replaced))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("told", [True, False])
def test_a_word_on_causality_is_for_the_attention_to_an_encoder_too(told: bool) -> None:
    original: Any = model_of(BertCase(), role="decoder with cross-attention", implementation="sdpa").encoder.layer[0]
    original.crossattention.self.is_causal = True
    replaced = copy.deepcopy(original)
    policies.replace_module(replaced)
    x, source = (torch.randn(1, tokens, original.attention.self.query.in_features) for tokens in (3, 5))
    with torch.no_grad():
        expected, result = (one(x, encoder_hidden_states=source, is_causal=told) for one in (original, replaced))
    torch.testing.assert_close(result, expected)


def test_a_table_of_what_gpt_neo_may_see_that_allows_nothing_is_refused() -> None:
    """As a model has it that was made anew from the meta device, and given its parameters alone."""
    model: Any = model_of(GPTNeoCase())
    for layer in model.h:
        layer.attn.attention.bias.zero_()
    with pytest.warns(UserWarning, match="neither a causal mask nor"):
        assert not policies.replace_module(model).replaced


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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hook_inside_a_layer_is_obeyed_in_a_compiled_model(case: Case) -> None:
    model = case.build(case.simplest)
    replaced = copy.deepcopy(model)
    handle = policies.replace_module(replaced)
    for one in (model, replaced):
        layer = one.get_submodule(handle.replaced[0].path)
        norm = next(part for part in layer.modules() if "Norm" in type(part).__name__)
        norm.register_forward_hook(lambda module, given, output: 2 * output)
    torch.compiler.reset()
    with torch.no_grad():
        expected = case.run(model, case.inputs(case.simplest))["last_hidden_state"]
        compiled: Any = torch.compile(replaced, backend="eager")
        actual = case.run(compiled, case.inputs(case.simplest))["last_hidden_state"]
    torch.compiler.reset()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
