"""What a policy from outside the tree is judged on: each kind of layer that it replaces on a case of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cases import CASES
from harness.case import Case
from harness.evidence.script import _carried_along, _module
from harness.properties import BY_NAME
from harness.validation.derive import derive
from harness.validation.file import Contents
from harness.validation.fit import without
from harness.validation.isolation import Limits
from harness.validation.subject import Subject
from harness.validation.validate import Request, Validation, record, validate
from harness.validation.verdict import block
from policies import replace_module

from .outcomes import outcomes
from .validated import BAD, LIMITS, reason

STABLELM = "transformers.models.stablelm.modeling_stablelm:StableLmDecoderLayer"
KNOWN = tuple((one, entry.path) for entry in CASES for one in entry.policy_entry.load().layer_classes)
FORWARDING = "from policies.{module} import {policy}\nclass Mine({policy}):\n    pass\n"
WITHOUT_ENCODERS = """
from policies.bert import HFBertLayerPolicy

class Mine(HFBertLayerPolicy):
    layer_classes = (*HFBertLayerPolicy.layer_classes[:1], "transformers.models.llama.modeling_llama:NoSuchLayer")

    @classmethod
    def read(cls, layer):
        if layer.has("crossattention"):
            raise layer.refuse("cross-attention")
        return super().read(layer)
"""


def known(path: Path, *properties: str) -> tuple[Request, Validation]:
    """The validation of the policy at ``path`` on the cases that this project has, limited to ``properties``."""
    limits = Limits(seconds=60.0, memory=2**30, workers=1)
    request = Request(path=str(path), profile="quick", budget=0.0, faults=0.0, limits=limits, properties=properties, known=KNOWN)
    return request, validate(request)


def said(request: Request, done: Validation, folder: Path) -> str:
    """The block that an author pastes."""
    return block(record(request, done, run_id="1", created="2026-03-02T02:17:00+00:00", command=""), done, folder)


@pytest.mark.parametrize(
    ("module", "policy", "cases"),
    [
        ("bert", "HFBertLayerPolicy", ["bert", "roberta"]),
        ("gpt_neo", "HFGPTNEOLayerPolicy", ["gpt_neo"]),
        ("vae", "VAEPolicy", ["vae"]),
    ],
)
def test_each_layer_that_a_policy_replaces_is_judged_on_the_case_that_is_known_for_it(
    module: str, policy: str, cases: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FORWARDING.format(module=module, policy=policy))
    request, done = known(path, "revert")
    assert not done.failed
    assert [one.case for one in done.verdicts if one.property == "revert"] == list(done.subjects) == cases
    text = said(request, done, tmp_path)
    assert f"random models of {' and '.join(cases)} " in text
    assert text.count("the case that this project has for the layer") == len(cases)


def test_a_case_that_nobody_wrote_and_nobody_can_derive_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FORWARDING.format(module="vae", policy="VAEPolicy"))
    done = validate(Request(path=str(path), limits=LIMITS, properties=("revert",)))
    assert reason(done, "case").endswith("has no transformers model: write a Case beside the policy")


def test_a_policy_that_leaves_cross_attention_out_is_refuted_on_the_known_case() -> None:
    """One derived from BERT's configuration asked no decoder with an encoder for a long time, and it held."""
    _, done = known(BAD / "deaf_to_encoders.py", "model equality", "revert")
    assert "relative error" in reason(done, "model equality")
    assert not reason(done, "revert")


PART = """
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import {original}
from policies.base import DSPolicy
from policies.swap import Swap

class Fast({original}):
    def forward(self, {argument}):
        return {result}

class InPlace(Swap):
    def __init__(self, module): self.module = module
    def install(self): self.module.__class__ = Fast
    def revert(self): self.module.__class__ = {original}

class Mine(DSPolicy):
    layer_classes = ("transformers.models.llama.modeling_llama:{original}",)
    @classmethod
    def plan(cls, module): return InPlace(module)
"""
BY_ITS_OWN_PARTS = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
BY_THEIR_WEIGHTS = "self.down_proj(self.act_fn(F.linear(x, self.gate_proj.weight, self.gate_proj.bias)) * self.up_proj(x))"


@pytest.mark.parametrize(
    ("original", "argument", "result", "failed"),
    [
        ("LlamaRMSNorm", "hidden_states", "F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)", []),
        ("LlamaMLP", "x", BY_ITS_OWN_PARTS, []),
        ("LlamaMLP", "x", BY_THEIR_WEIGHTS, ["hooks", "settings", "refusal"]),
    ],
)
def test_a_part_of_a_layer_is_judged_as_a_layer_is_and_may_do_what_a_changed_original_does(
    original: str, argument: str, result: str, failed: list[str], tmp_path: Path
) -> None:
    """Norms and MLPs are replaced by themselves as well. One that reads another's weight passes over what else that does."""
    path = tmp_path / "mine.py"
    path.write_text(PART.format(original=original, argument=argument, result=result))
    done = validate(
        Request(
            path=str(path),
            budget=0.0,
            faults=0.0,
            limits=Limits(seconds=60.0, memory=2**30, workers=1),
            properties=("contract", "layer equality", "hooks", "settings", "shared weights", "refusal"),
        ),
    )
    assert [one.property for one in done.failed] == failed


def test_what_a_policy_refuses_in_a_known_case_is_counted_as_refused_and_a_class_without_a_case_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(WITHOUT_ENCODERS)
    request, done = known(path, "model equality", "refusal")
    assert not done.failed, [one.reason for one in done.failed]
    text = said(request, done, tmp_path)
    assert "- refused by name: role=decoder with cross-attention (cross-attention)" in text
    assert "- not judged: transformers.models.llama.modeling_llama has no module class NoSuchLayer" in text


def test_a_policy_of_whole_models_from_outside_refuses_in_words_of_its_own_but_does_not_pass_over_a_patch() -> None:
    case = without(next(entry for entry in CASES if entry.name == "unet").load(), ())

    def in_other_words(model: Any) -> Any:
        handle = replace_module(model)
        left = [SimpleNamespace(reason="not this one")] if handle.left else []
        return SimpleNamespace(model=model, replaced=handle.replaced, left=left, revert=handle.revert)

    def passing_over(model: Any) -> Any:
        vars(model).pop("forward", None)
        return replace_module(model)

    assert outcomes(("refusal",), case, in_other_words) == {"refusal": "held"}
    assert outcomes(("refusal",), case, passing_over) == {"refusal": "failed"}


@pytest.mark.parametrize(("known", "axis"), [("cases.llama:LlamaCase", "attention_bias"), (None, "config use_qkv_bias")])
def test_what_a_policy_refuses_is_drawn_by_no_script_of_a_failure(known: str | None, axis: str) -> None:
    """A script makes the case anew, and its property may draw other examples."""
    derivation, refused = None if known else derive(STABLELM), ((axis, True, "a bias"),)
    case = Subject("mine.py", Contents("Mine", (), None), derivation, known, refused).case
    made = []

    def trial(case: Case, *_: Any, **__: Any) -> None:
        made.append(case)
        raise ZeroDivisionError

    with _module("a_script") as module:
        exec(compile(_carried_along(BY_NAME["call twice"], case, case.simplest, "auto"), "a_script.py", "exec"), module.__dict__)
        module.Trial = trial
        with pytest.raises(ZeroDivisionError):
            module.main(replace_module)
    drawn = {one.name: one.values for one in made[0].axes}
    assert drawn == {one.name: one.values for one in case.axes} and drawn[axis] == (False,)
    assert f"{axis}=True" in {one.name for one in case.refusals()}
