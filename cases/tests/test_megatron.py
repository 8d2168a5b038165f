"""Megatron's layers: what the page claims about them, each claim by an example of its own."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.case import Example, Inputs
from harness.exact import exact_mode
from harness.properties.equality import valid_positions
from harness.randomise import randomise
from policies import UnsupportedLayer, replace_module
from policies.anatomy import QKVLayout
from policies.catalogue import ENTRIES, Entry
from policies.megatron import MegatronLayerPolicy
from policies.megatron_config import _NOT_IN_THE_FORWARD, _READ_FROM_THE_LAYER, unknown_feature

from ..megatron import MegatronCase
from ..megatron_older import OlderMegatronCase

_WHY_NOT = next(entry.unavailable for entry in ENTRIES if entry.name == "megatron")
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))

CASE = MegatronCase()
OLDER = OlderMegatronCase()


@pytest.fixture(autouse=True)
def _on_a_cpu() -> Iterator[None]:
    with CASE.surroundings():
        yield


def drawn(**values: Any) -> Example:
    return Example({**CASE.simplest.values, **values}, 11)


def layer_of(example: Example, **overrides: Any) -> Any:
    return CASE.build(example, **overrides).get_submodule("block.layers.0")


def hidden_for(layer: Any, tokens: int = 5, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(tokens, batch, layer.config.hidden_size, generator=generator)


def both(layer: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any, nn.Module]:
    """What the layer returns, what its replacement returns, and the replacement, all in exact mode."""
    twin = copy.deepcopy(layer).double()
    assert len(replace_module(twin).replaced) == 1
    with exact_mode():
        return layer.double()(*args, **kwargs), twin(*args, **kwargs), twin


def causal(tokens: int) -> Tensor:
    return torch.ones(1, 1, tokens, tokens, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("case", [CASE, OLDER], ids=lambda case: case.name)
def test_every_feature_that_cannot_be_expressed_is_refused_by_name(case: Any) -> None:
    for refusal in case.refusals():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handle = replace_module(refusal.build())
        assert not handle.replaced, refusal.name
        assert refusal.feature in " ".join(one.reason for one in handle.left), refusal.name


def test_rows_are_read_group_by_group_as_queries_then_key_then_value() -> None:
    layer = layer_of(drawn(groups=2, queries_per_group=3, head_size=4))
    policy = MegatronLayerPolicy(layer)
    assert policy.anatomy.attention.qkv.layout is QKVLayout.INTERLEAVED
    assert (policy.anatomy.attention.heads, policy.anatomy.attention.kv_heads) == (6, 2)
    assert policy.attention().is_megatron_v2
    assert policy.attention().qkv_weight.shape == ((6 + 2 * 2) * 4, 24)


def test_norms_on_a_cpu_are_those_of_torch() -> None:
    for kind, expected in (("LayerNorm", nn.LayerNorm), ("RMSNorm", nn.RMSNorm)):
        layer = layer_of(drawn(normalization=kind, qk_norm="norm"))
        norms = (layer.input_layernorm, layer.pre_mlp_layernorm, layer.self_attention.q_layernorm)
        assert {type(norm) for norm in norms} == {expected}


def test_a_call_by_position_and_its_context_come_back_as_from_the_original() -> None:
    layer, context = layer_of(drawn()), torch.ones(1)
    x = hidden_for(layer).double()
    expected, actual, twin = both(layer, x, causal(5), context)
    assert type(actual) is type(expected) is tuple
    assert actual[1] is expected[1] is context
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)
    assert twin.fused.calls == 1


def test_a_query_that_sees_nothing_attends_to_every_key_evenly() -> None:
    layer = layer_of(drawn(groups=2, queries_per_group=2))
    mask = causal(5).clone()
    mask[..., 2, :] = True
    expected, actual, _ = both(layer, hidden_for(layer).double(), mask)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)


def test_windowed_attention_passes_over_the_mask_it_is_given() -> None:
    layer = layer_of(drawn(window=1))
    x = hidden_for(layer).double()
    masked, replaced, _ = both(layer, x, torch.rand(2, 1, 5, 5) < 0.5)
    unmasked, _, _ = both(layer, x, None)
    assert torch.equal(masked[0], unmasked[0])
    torch.testing.assert_close(replaced[0], masked[0], rtol=1e-12, atol=1e-12)


def test_angles_may_differ_from_row_to_row() -> None:
    layer = layer_of(drawn(head_size=8))
    angles = torch.randn(5, 2, 1, 6, dtype=torch.float64)
    expected, actual, twin = both(layer, hidden_for(layer).double(), causal(5), rotary_pos_emb=angles)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)
    assert not twin.fused.fallbacks


def test_a_layer_takes_the_tensor_that_megatron_makes_of_an_ordinary_one_in_inference_mode() -> None:
    """It shares an ordinary tensor's memory, was made in inference mode, and can have no views there."""
    layer = layer_of(drawn())
    twin, x = copy.deepcopy(layer), hidden_for(layer)
    replace_module(twin)
    with torch.inference_mode():
        viewless = torch.empty(1)
        viewless.data = x.data
        expected, actual = layer(viewless, causal(5)), twin(viewless, causal(5))
    torch.testing.assert_close(actual[0], expected[0])
    assert twin.fused.calls == 1


def test_separate_angles_for_queries_and_keys_go_to_the_original() -> None:
    layer = layer_of(drawn(head_size=8))
    angles = (torch.randn(5, 1, 1, 8).double(), torch.randn(5, 1, 1, 8).double())
    expected, actual, twin = both(layer, hidden_for(layer).double(), causal(5), rotary_pos_emb=angles)
    assert torch.equal(actual[0], expected[0])
    assert list(twin.fused.fallbacks) == ["rotary_pos_emb that is not one (T, B or 1, 1, R) tensor for queries and keys"]


@pytest.mark.parametrize("argument", ["attention_bias", "packed_seq_params"])
def test_an_argument_that_the_original_rejects_is_rejected_still(argument: str) -> None:
    layer = layer_of(drawn())
    replace_module(layer)
    with pytest.raises(AssertionError, match="not supported"):
        layer(hidden_for(layer), None, **{argument: SimpleNamespace(qkv_format="sbhd")})
    assert layer.fused.fallbacks == {f"argument {argument}": 1}


def test_the_fused_bias_and_gelu_keeps_its_rounded_constant() -> None:
    layer = layer_of(drawn(bias_activation_fusion=True, activation="gelu"))
    expected, actual, _ = both(layer, hidden_for(layer).double(), causal(5))
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_lower_precision_stays_within_a_few_roundings_of_the_exact_result(dtype: torch.dtype, normalization: str) -> None:
    layer = layer_of(drawn(normalization=normalization, groups=3, queries_per_group=2, head_size=8)).to(dtype)
    x = hidden_for(layer).to(dtype)
    original = layer(x, causal(5))[0].double()
    exact, _, twin = both(copy.deepcopy(layer), x.double(), causal(5))
    replaced = twin.to(dtype)(x, causal(5))[0].double()
    scale = exact[0].abs().max()
    theirs, ours = ((one - exact[0]).abs().max() / scale for one in (original, replaced))
    assert ours <= 2 * theirs + 4 * torch.finfo(dtype).eps


def test_training_runs_the_original() -> None:
    layer = layer_of(drawn()).train()
    replace_module(layer)
    layer(hidden_for(layer), causal(5))
    assert layer.fused.fallbacks == {"training mode": 1}


def test_every_field_that_is_let_pass_exists() -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    known = {field.name for field in dataclasses.fields(TransformerConfig)}
    assert known >= _READ_FROM_THE_LAYER | _NOT_IN_THE_FORWARD


def test_a_field_of_a_later_release_refuses_and_a_field_of_a_project_does_not() -> None:
    config_class = type(layer_of(drawn()).config)
    field = [("rope_base", float, dataclasses.field(default=1.0))]
    later = dataclasses.make_dataclass("Later", field, bases=(config_class,), namespace={"__module__": "megatron.core.x"})
    project = dataclasses.make_dataclass("Own", field, bases=(config_class,), namespace={"__module__": "project"})
    sizes = {"num_layers": 1, "hidden_size": 4, "num_attention_heads": 1, "cuda_graph_scope": []}
    assert unknown_feature(later(**sizes)) is None
    assert unknown_feature(later(**sizes, rope_base=2.0)) == "config.rope_base=2.0"
    assert unknown_feature(project(**sizes, rope_base=2.0)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("version", "layout"), [(2, QKVLayout.INTERLEAVED), (0, QKVLayout.BLOCKED)])
def test_an_older_layer_is_asked_how_its_rows_are_ordered(version: int, layout: QKVLayout, dtype: torch.dtype) -> None:
    example = OLDER.simplest.with_value("groups", 3).with_value("version", version)
    layer = OLDER.build(example).get_submodule("layers.0").to(dtype)
    layer.train()
    policy = MegatronLayerPolicy(layer)
    assert policy.anatomy.attention.qkv.layout is layout
    assert policy.get_param_names().names == tuple(policy.anatomy.parameters)
    assert all(module.training for module in layer.modules())


def test_the_name_of_the_attention_does_not_decide_the_order_of_its_rows() -> None:
    layer: Any = OLDER.build(OLDER.simplest.with_value("groups", 3)).get_submodule("layers.0")
    layer.attention = layer.self_attention
    del layer.self_attention
    assert MegatronLayerPolicy(layer).anatomy.attention.qkv.layout is QKVLayout.INTERLEAVED


class _Attention(nn.Module):
    """Two heads of three elements, rows blocked, forbidden scores at minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads = 2
        self.query_key_value, self.dense = nn.Linear(5, 18), nn.Linear(6, 5)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 3)) for part in self.query_key_value(x).chunk(3, dim=-1))
        scores = torch.einsum("tbhe,sbhe->bhts", query, key) / 3**0.5
        scores = scores if mask is None else scores.masked_fill(mask, float("-inf"))
        return self.dense(torch.einsum("bhts,sbhe->tbhe", scores.softmax(-1), value).flatten(-2))


class ParallelTransformerLayer(nn.Module):
    """As small as such a layer can be: plain linears, and nothing written down that its tensors say."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(5), nn.LayerNorm(5)
        self.attention = _Attention()
        self.mlp = nn.Module()
        self.mlp.dense_h_to_4h, self.mlp.dense_4h_to_h = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = hidden_states + self.attention(self.input_layernorm(hidden_states), attention_mask)
        inner = nn.functional.gelu(self.mlp.dense_h_to_4h(self.post_attention_layernorm(x)))
        return x + self.mlp.dense_4h_to_h(inner)


def test_an_older_layer_may_leave_unsaid_what_its_tensors_and_its_answers_say() -> None:
    layer = randomise(ParallelTransformerLayer(), 5).eval().double()
    twin: Any = copy.deepcopy(layer)
    assert len(replace_module(twin).replaced) == 1
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(twin(x, causal(4)), layer(x, causal(4)), rtol=1e-12, atol=1e-12)
    assert twin.fused.core.anatomy.attention.qkv.layout is QKVLayout.BLOCKED
    assert twin.fused.calls == 1


def test_an_older_layer_without_storage_cannot_be_asked() -> None:
    layer = OLDER.build(OLDER.simplest).get_submodule("layers.0").to("meta")
    with pytest.raises(UnsupportedLayer, match="meta device"):
        MegatronLayerPolicy(layer)


def test_the_older_layer_is_known_from_any_module_and_once_replaced_is_not_replaced_again() -> None:
    model = OLDER.build(OLDER.simplest)
    type_before = type(model.get_submodule("layers.0"))
    handle = replace_module(model)
    assert [one.policy for one in handle.replaced] == ["MegatronLayerPolicy"]
    with pytest.warns(UserWarning, match="already replaced"):
        replace_module(model)
    handle.revert()
    assert type(model.get_submodule("layers.0")) is type_before


def test_a_policy_whose_package_has_no_parent_is_unavailable_and_says_how_to_get_it() -> None:
    entry = Entry("megatron", "policies.megatron:MegatronLayerPolicy", "no_such.core", "megatron-core", extra="megatron")
    assert entry.unavailable == "megatron-core is not installed: pip install 'replace-policy-harness[megatron]'"


def test_stand_ins_are_gone_outside_their_context() -> None:
    inside = torch.cuda.current_device
    with CASE.surroundings():
        assert torch.cuda.current_device is not inside
    assert torch.cuda.current_device is inside


def test_positions_that_count_are_turned_for_layers_with_tokens_first_however_many_there_are() -> None:
    model = replace_module(CASE.build(CASE.simplest)).model
    valid = torch.tensor([[True, False], [True, True]])
    trial: Any = SimpleNamespace(inputs=Inputs(kwargs={}, valid=valid), replaced=SimpleNamespace(model=model))
    found = valid_positions(trial, torch.zeros(2, 2, 4))
    assert found is not None
    assert torch.equal(found, valid.t())
