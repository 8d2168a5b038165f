"""Cases that are derived from a layer, and policies that the harness writes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.validation.derive import derive
from harness.validation.derived import CROSSING, DerivedCase
from harness.validation.fields import idle_dropouts
from harness.validation.invent import invent
from harness.validation.models import NotDerivable
from harness.validation.parts import Passed, linear_paths
from harness.validation.validate import Request, validate
from policies.structure import Structure
from policies.swap import UnsupportedLayer

MODELING = "transformers.models.{0}.modeling_{0}:{1}"


@pytest.mark.parametrize(
    ("architecture", "layer", "refused"),
    [
        ("mistral", "MistralDecoderLayer", ()),
        ("cohere", "CohereDecoderLayer", ("use_qk_norm=True",)),
        ("electra", "ElectraLayer", ("add_cross_attention=True",)),
        (
            "falcon",
            "FalconDecoderLayer",
            ("alibi=True", "new_decoder_architecture=True", "multi_query=False", "parallel_attn=False"),
        ),
    ],
)
def test_a_policy_is_written_that_computes_the_same_or_refuses(architecture: str, layer: str, refused: tuple[str, ...]) -> None:
    """RMS norms and grouped queries; parallel residual and rotary pairs; post-norm with a decoder's cache; linears of a
    class of its own, and a sum made in place."""
    invented = invent("WrittenPolicy", MODELING.format(architecture, layer))
    assert invented.wrong == ()
    assert invented.refused == refused
    assert "TODO" not in invented.source


@pytest.mark.parametrize(
    ("layer", "size"), [("phi:PhiDecoderLayer", "own.rotary_ndims"), ("mistral:MistralDecoderLayer", "None")]
)
def test_a_policy_is_written_that_asks_the_layer_how_many_elements_rotate(layer: str, size: str) -> None:
    """Where it keeps the number; else as many as there are positions for."""
    assert (
        f"rotary=Rotary(style=RotaryStyle.HALF, size={size})"
        in invent("WrittenPolicy", MODELING.format(*layer.split(":"))).source
    )


class _HalvedLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) / 2


def test_a_linear_of_its_own_is_read_only_where_it_computes_what_a_linear_does() -> None:
    from transformers.models.falcon.modeling_falcon import FalconLinear

    x = torch.ones(1, 2, 4)
    plain, odd = FalconLinear(4, 3), _HalvedLinear(4, 3)
    parts = {name: Passed(module=one, given=x, returned=one(x)) for name, one in (("plain", plain), ("odd", odd))}
    assert linear_paths(parts) == ["plain"]


def test_a_linear_of_another_class_than_the_one_looked_at_is_refused() -> None:
    from transformers.models.falcon.modeling_falcon import FalconLinear

    layer = nn.ModuleDict({"own": FalconLinear(4, 3), "odd": _HalvedLinear(4, 3)})
    name = MODELING.format("falcon", "FalconLinear")
    assert Structure(layer).own_linear("own", name).weight is layer["own"].weight
    with pytest.raises(UnsupportedLayer, match="odd is a _HalvedLinear, not FalconLinear"):
        Structure(layer).own_linear("odd", name)


def test_a_mistyped_path_is_refused_with_the_part_that_may_be_meant() -> None:
    layer = nn.ModuleDict({"gate_proj": nn.Linear(4, 3)})
    with pytest.raises(UnsupportedLayer, match=r"has no gat_proj: not the structure this policy knows \(it has gate_proj\)$"):
        Structure(layer).get("gat_proj")


def test_what_cannot_be_found_out_is_left_to_the_author_by_name() -> None:
    """Gemma 2 norms the output of each block, which no anatomy expresses."""
    invented = invent("WrittenPolicy", MODELING.format("gemma2", "Gemma2DecoderLayer"))
    assert invented.wrong == ("norms that stand where no anatomy has one: post_attention_layernorm, post_feedforward_layernorm",)
    assert "TODO: norms that stand where no anatomy has one" in invented.source


def test_a_derived_case_says_what_could_not_be_drawn() -> None:
    """Falcon's heads are not free with one key and value head, and its ALiBi takes no mask of four dimensions."""
    derivation = derive(MODELING.format("falcon", "FalconDecoderLayer"))
    assert any("config alibi=True" in one for one in derivation.dropped)
    assert "num_ln_in_parallel_attn stays None" in derivation.undrawn
    assert derivation.causal and derivation.cached


def test_a_derived_case_draws_cross_attention_and_gives_it_states_to_read() -> None:
    """A replacement that ignored them would compute the same otherwise."""
    case = DerivedCase(derive(MODELING.format("electra", "ElectraLayer")))
    crossing = case.simplest.with_value(CROSSING, True)
    inputs = case.inputs(crossing)
    model = case.build(crossing)
    without = case.inputs(crossing.with_value(CROSSING, False))
    assert case.is_causal(crossing) and not case.is_causal(case.simplest)
    assert set(inputs.kwargs) == {*without.kwargs, "encoder_hidden_states", "encoder_attention_mask", "use_cache"}
    with torch.no_grad():
        assert not torch.equal(*(case.run(model, one)["last_hidden_state"] for one in (inputs, without)))


@pytest.mark.parametrize(
    ("layer", "lines"),
    [
        ("electra:ElectraLayer", ('constant("attention.is_cross_attention", False)', "heads=own.num_attention_heads")),
        ("granite:GraniteDecoderLayer", ('constant("residual_multiplier", 1.0)', '_PLAIN = {"residual_multiplier": 1.0}')),
        ("gpt_bigcode:GPTBigCodeBlock", ("kv_heads=own.kv_heads", '_PLAIN = {"multi_query": True}')),
    ],
)
def test_a_written_policy_refuses_flags_numbers_and_heads_that_are_set_otherwise(layer: str, lines: tuple[str, ...]) -> None:
    """A layer may read them, or never look at them: nobody can tell from a run."""
    source = invent("Mine", MODELING.format(*layer.split(":"))).source
    assert [one for one in lines if one not in source] == []


def test_a_case_is_derived_for_a_layer_that_sees_images() -> None:
    """It has no tokens, no mask and no cache, and is asked for none."""
    case = DerivedCase(derive(MODELING.format("vit", "ViTLayer")))
    assert not {"tokens", "mask", "positions"} & {one.name for one in case.axes}
    assert not (case.cached or case.static_cache)


def test_a_layer_that_sees_images_keeps_nothing_and_is_asked_so(tmp_path: Path) -> None:
    """A file may have a name that Python's modules cannot be saved by."""
    file = tmp_path / "sée.py"
    file.write_text(invent("See", MODELING.format("vit", "ViTLayer")).source)
    request = Request(path=str(file), profile="quick", budget=0.0, faults=0.0, properties=("flat memory", "pickle"))
    found = {one.property: (one.outcome, one.reason) for one in validate(request).verdicts}
    assert found["flat memory"] == found["pickle"] == ("held", "")


def test_a_window_that_is_drawn_is_in_effect_in_every_other_layer() -> None:
    """Some configurations have a flag for it beside its width, and say of each layer whether it is of that kind."""
    case = DerivedCase(derive(MODELING.format("qwen2", "Qwen2DecoderLayer")))
    example = case.simplest.with_value("layers", 3)
    for window, expected in ((None, [None, None, None]), (2, [2, None, 2])):
        model: Any = case.build(example.with_value("window", window))
        assert [layer.self_attn.sliding_window for layer in model.layers] == expected


def test_dropout_is_on_in_a_derived_case_though_it_is_off_by_default() -> None:
    """Else a replacement that runs its fused path in training would compute the same."""
    derivation = derive(MODELING.format("mistral", "MistralDecoderLayer"))
    assert derivation.dropouts == ("attention_dropout",)
    case = DerivedCase(derivation)
    assert case.build(case.simplest).config.attention_dropout > 0


def test_no_policy_is_written_for_a_layer_in_which_nothing_attends() -> None:
    """What a projection is called looks like one of attention's."""
    with pytest.raises(NotDerivable, match=r"^nothing attends in a MambaBlock, .* write a policy with a layer of your own"):
        invent("Mine", MODELING.format("mamba", "MambaBlock"))


def test_a_mixture_of_experts_has_few_and_runs_in_float64() -> None:
    """By default experts are multiplied by grouped products, which have no float64."""
    case = DerivedCase(derive(MODELING.format("mixtral", "MixtralExperts")))
    axes = {axis.name: axis.values for axis in case.axes}
    assert axes["config num_local_experts"] == (8, 4, 5) and axes["config num_experts_per_tok"] == (2, 1, 3)
    assert case.build(case.simplest).layers[0].mlp.experts.config._experts_implementation == "eager"  # type: ignore[union-attr]


def test_a_flag_that_is_off_is_no_dropout_that_is_none() -> None:
    assert idle_dropouts(("token_dropout", "attention_dropout"), {"token_dropout": False, "attention_dropout": 0.0}) == (
        "attention_dropout",
    )


def test_a_layer_class_that_is_not_there_is_answered_with_the_nearest() -> None:
    """A mistyped class costs one look at the message."""
    with pytest.raises(NotDerivable, match="did you mean MistralDecoderLayer"):
        derive(MODELING.format("mistral", "MistralDecoderLayr"))


def test_a_policy_is_written_that_knows_when_a_layer_hands_no_word_on_causality_on() -> None:
    """The original passes it over, and so has a replacement to."""
    assert 'HF_IGNORED | {"is_causal"}' in invent("Mine", MODELING.format("stablelm", "StableLmDecoderLayer")).source
    assert "is_causal" not in invent("Mine", MODELING.format("phi", "PhiDecoderLayer")).source.partition("def read")[0]


def test_a_value_with_which_a_model_hands_back_other_rows_than_it_was_given_is_not_drawn() -> None:
    """XLNet, told that its data goes both ways, halves the batch."""
    derivation = derive(MODELING.format("xlnet", "XLNetLayer"))
    assert any(" tokens" in one for one in derivation.dropped)
