"""A trial hands out no model that could make a pass vacuous, and tells whose fault an exception is."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from harness.case import Example
from harness.check import check_property
from harness.exact import exact_mode
from harness.nested import cast
from harness.profiles import PROFILES
from harness.properties import BY_NAME
from harness.properties.base import same_tensor
from harness.trial import Disagreement, OriginalFailed, Trial, Vacuous, original_side
from policies import replace_module
from policies.replace import Replacement

from .tiny import TinyLlama, edited

CASE = TinyLlama()


def trial(**values: Any) -> Trial:
    return Trial(CASE, CASE.simplest, replace_module, dtype=torch.float32).vary(**values)


def test_the_replaced_copy_shares_nothing_with_the_original() -> None:
    one = trial()
    mine = {tensor.untyped_storage().data_ptr() for tensor in one.original.parameters()}
    assert not mine & {tensor.untyped_storage().data_ptr() for tensor in one.replaced.model.parameters()}


def test_an_aliased_reference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy, "deepcopy", lambda model, memo: model)
    with pytest.raises(OriginalFailed, match="shares memory with it: there is no reference"):
        trial().copy()


def test_layers_that_were_not_replaced_are_missed() -> None:
    def only_first(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        return dataclasses.replace(handle, replaced=handle.replaced[:1])

    one = Trial(CASE, trial(layers=2).example, only_first, dtype=torch.float32)
    with pytest.raises(Disagreement, match="1 of 2 layers were replaced"):
        assert one.replaced


def test_layers_that_count_as_replaced_and_are_what_they_were_are_noticed() -> None:
    def reverting(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        handle.revert()
        return handle

    one = Trial(CASE, CASE.simplest, reverting, dtype=torch.float32)
    with pytest.raises(Disagreement, match=r"layers\.0 counts as replaced, and is the LlamaDecoderLayer that it was"):
        assert one.replaced


def test_a_handle_that_reverts_its_model_when_nobody_keeps_it_is_noticed() -> None:
    class Held:
        def __init__(self, handle: Replacement) -> None:
            self.handle, self.model, self.replaced, self.left = handle, handle.model, handle.replaced, handle.left

        def revert(self) -> None:
            self.handle.revert()

        def __del__(self) -> None:
            self.revert()

    one = Trial(CASE, CASE.simplest, lambda model: Held(replace_module(model)), dtype=torch.float32)
    model = one.replace(one.copy()).model
    with torch.no_grad(), pytest.raises(Disagreement, match="the original's again, and nobody has reverted them"):
        one.run_replaced(model, one.inputs)


def test_a_fused_layer_that_runs_the_originals_code_is_noticed() -> None:
    one = Trial(CASE, CASE.simplest, edited(lambda layer: layer.train() and None), dtype=torch.float32)
    with torch.no_grad(), pytest.raises(Disagreement, match=r"did not run in 1 layers \(training mode\)"):
        one.run_replaced(one.replaced.model, one.inputs)


def test_an_original_that_is_not_finite_shows_nothing_of_its_replacement() -> None:
    outputs = torch.tensor([torch.inf, 1.0])
    with pytest.raises(Vacuous, match="a layer: the original's is not finite"):
        same_tensor(trial(), outputs, outputs, None, "a layer")


def test_what_the_original_raises_is_the_originals_failure() -> None:
    with (
        pytest.raises(OriginalFailed, match="the original raised KeyError on a Tuesday: 'x'"),
        original_side("on a Tuesday"),
    ):
        raise KeyError("x")
    with pytest.raises(Vacuous), original_side():
        raise Vacuous("nothing")


def test_varied_trials_add_to_the_same_evidence() -> None:
    one = trial()
    other = one.vary(layers=2)
    assert other.replaced.replaced
    assert one.evidence.replaced == 2
    assert one.vary(layers=1) is one
    assert one.vary(no_such_axis=1) is one


def test_the_smallest_value_that_is_large_enough_is_taken() -> None:
    assert trial(tokens=1).at_least("tokens", 2).example["tokens"] == 3
    assert trial(tokens=5).at_least("tokens", 2).example["tokens"] == 5


def test_an_example_that_does_not_suit_changes_in_one_axis() -> None:
    suited = trial(batch=3).suited(lambda example: example["layers"] == 2)
    assert suited.example == Example({**trial(batch=3).example.values, "layers": 2}, 0)
    with pytest.raises(Vacuous, match="no example of tiny suits"):
        trial().suited(lambda example: False)


def test_in_exact_mode_models_and_inputs_are_float64() -> None:
    one = Trial(CASE, trial(mask="4d float").example, replace_module)
    with exact_mode():
        assert {parameter.dtype for parameter in one.original.parameters()} == {torch.float64}
        mask = one.inputs.kwargs["attention_mask"]
    assert mask.dtype == torch.float64
    assert float(mask.min()) == torch.finfo(torch.float64).min


def test_casting_reaches_nested_tensors_and_leaves_integers_alone() -> None:
    given = {"a": [torch.ones(1)], "b": (torch.ones(1, dtype=torch.int64), 3)}
    found = cast(given, torch.bfloat16)
    assert found["a"][0].dtype == torch.bfloat16
    assert found["b"][0].dtype == torch.int64
    assert found["b"][1] == 3


@pytest.mark.parametrize(("nothing", "outcome"), [(Vacuous, "vacuous"), (OriginalFailed, "error")])
def test_an_original_that_shows_nothing_makes_a_verdict_vacuous_and_one_that_raises_makes_it_an_error(
    nothing: type[Exception], outcome: str
) -> None:
    def check(trial: Trial) -> None:
        raise nothing("whatever is said of it")

    checked = check_property(
        dataclasses.replace(BY_NAME["revert"], check=check), CASE, profile=PROFILES["quick"], seed=0, policy=""
    )
    assert (checked.verdict.outcome, checked.original_raised) == (outcome, outcome == "error")
