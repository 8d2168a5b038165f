"""Other people's replacements: a wrong reading is told from a right one, fact by fact, and what is absent is said so."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from harness.cli.app import status
from harness.foreign import lossy
from harness.foreign.deepspeed import judge
from harness.foreign.domain import Refused, as_one, explore, refusing
from harness.foreign.perform import pieces
from harness.foreign.readings import Judge, Proof
from harness.foreign.rows import ROWS, Row
from harness.foreign.subject import subject
from harness.foreign.whole import asked_of, judge_whole
from harness.properties.equality import MODEL_EQUALITY
from harness.rounding.calibration import multiple
from harness.search import search, tell
from policies.foreign import deepspeed as adapter
from policies.foreign.catalogue import ADAPTERS, Adapter
from policies.foreign.changed import Changed, NothingChanged, as_a_whole
from policies.foreign.deepspeed_names import load
from policies.opt import HFOPTLayerPolicy
from policies.replace import replace_module

from . import fake_deepspeed as fake

TORCHAO = importlib.util.find_spec("torchao") is not None
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
OPT = Row(
    policy="fake",
    case="opt",
    own="policies.opt:HFOPTLayerPolicy",
    live=None,
    only={
        "activation": ("relu",),
        "norm_before": (True,),
        "bias": (True,),
        "norm_affine": (True,),
        "norm_eps": ("same",),
        "inner": (16,),
        "heads": (2, 3),
    },
)


def proof(policy: Any, examples: int = 6) -> tuple[Proof, set[str]]:
    """The proof of one fake policy's reading of OPT, and what it refused."""
    refusals: set[str] = set()

    def replacer(ours: frozenset[str]) -> Any:
        reading = adapter.reading(policy, HFOPTLayerPolicy, ours, None, refusals)
        return lambda model: replace_module(model, [reading])

    judged = Judge(subject(OPT, CASES), replacer, adapter.facts_of).prove(examples=examples, seed=0)
    return judged, refusals


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake.install(monkeypatch)


@pytest.mark.usefixtures("_fake")
def test_a_right_reading_is_proven_with_nothing_from_us() -> None:
    found, refusals = proof(fake.Right)
    assert (found.faults, found.ours, found.problem, refusals) == ([], frozenset(), "", set())
    assert found.examples == 7


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("policy", "facts"),
    [
        (fake.PostNorm, {"norm position"}),
        (fake.SaysGelu, {"activation"}),
        (fake.Unscaled, {"scale"}),
        (fake.InBlocks, {"QKV order"}),
        (fake.SwappedNorms, {"norms"}),
        (fake.NoBias, {"attention biases"}),
        (fake.FourTimes, {"inner size"}),
        (fake.Crashes, {"MLP weights", "MLP biases"}),
        (fake.TwoThings, {"norm position", "activation"}),
    ],
)
def test_a_wrong_reading_is_blamed_on_what_is_wrong(policy: Any, facts: set[str]) -> None:
    """Nothing else is blamed, and the rest is proven."""
    found, _ = proof(policy)
    assert found.ours == facts
    assert found.examples == 7 and not found.problem


@pytest.mark.usefixtures("_fake")
def test_an_honest_refusal_is_no_fault() -> None:
    found, refusals = proof(fake.Refuses)
    assert not found.faults and refusals == {"Unsupported layer"}


class _Container:
    """Loads one weight, by a name that the test chooses."""

    def load_params(self: Any, module: Any, state: Any, quantizer: Any, whole: Any, prefix: str) -> None:
        if self.policy.name in state:
            module.attention.attn_ow = whole.copy(module.attention.attn_ow, quantizer.quantize(state[self.policy.name].t()))
        if self.policy.name == "crash":
            raise IndexError("tuple index out of range")


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("dense.weight", "same", {}),
        ("dense.wieght", "none", {"missing": ("dense.wieght",), "unread": ("dense.weight",)}),
        ("dense.weight", "other", {"misplaced": ("attention.attn_ow",)}),
        ("crash", "none", {"error": "load_params raises IndexError: tuple index out of range", "missing": ("crash",)}),
    ],
)
def test_checkpoint_names_are_read_off_by_loading(name: str, part: str, expected: dict[str, Any]) -> None:
    """Names that are not there, names never asked for, and tensors in the wrong place are told apart."""
    weight = torch.arange(6.0).reshape(2, 3)
    parts = {"same": {"out_weight": weight}, "other": {"out_weight": weight + 1}, "none": {}}[part]
    found = load(_Container, SimpleNamespace(name=name), {"dense.weight": weight}, parts)
    assert {key: value for key, value in vars(found).items() if value} == expected
    assert found.wrong == bool(expected)


def test_a_replacement_that_fails_on_some_models_gets_its_domain() -> None:
    """The axis that decides is found, with the values that pass and the ones that do not."""
    case = as_one(next(entry for entry in CASES if entry.name == "gptj").load())

    def replace(model: Any) -> Changed:
        if len(model.h) == 3:
            model.ln_f.eps = 0.5
        if len(model.h) == 2:
            raise ValueError("two layers are not supported")
        return as_a_whole(model, "test")

    domain = explore(MODEL_EQUALITY, case, refusing(replace), examples=8, seed=0)
    assert {limit.axis for limit in domain.limits} == {"layers"}
    assert {(limit.failing[0], limit.refused) for limit in domain.limits} >= {(2, True)}
    assert not domain.problem and domain.examples == 9


def test_an_error_that_nobody_meant_is_no_refusal() -> None:
    def crashes(model: Any) -> Changed:
        first, second = model.parameters(), 1, 2  # type: ignore[assignment]
        return as_a_whole(model, f"{first}{second}")

    def objects(model: Any) -> Changed:
        raise NotImplementedError("not this model")

    with pytest.raises(ValueError, match="too many values to unpack"):
        refusing(crashes)(torch.nn.Identity())
    with pytest.raises(Refused, match="not this model"):
        refusing(objects)(torch.nn.Identity())


def _quantised(model: nn.Module, levels: float, *, drop_bias: bool = False) -> Changed:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            step = module.weight.detach().abs().amax(1, keepdim=True) / levels
            module.weight.data = (module.weight.detach() / step).round() * step
            if drop_bias and module.bias is not None:
                module.bias.data.zero_()
    return as_a_whole(model, "quantised")


@pytest.mark.parametrize(("levels", "drop_bias", "fails"), [(127.0, False, False), (7.0, False, True), (127.0, True, True)])
def test_int8_may_cost_what_int8_costs_and_no_more(levels: float, drop_bias: bool, fails: bool) -> None:
    """Honest rounding is within its budget; a coarser grid and a dropped bias are not."""
    case = as_one(next(entry for entry in CASES if entry.name == "opt").load())
    verdict, why = tell(lossy.BUDGET, case, lambda model: _quantised(model, levels, drop_bias=drop_bias), case.simplest)
    assert verdict is fails, why


def _right(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of tokens, of shape (..., width), and what a step of each is worth."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 127
    return (x / step).round(), step


def _no_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    whole, step = _right(x)
    return whole, torch.ones_like(step)


def _scale_of_the_first_token(x: Tensor) -> tuple[Tensor, Tensor]:
    whole, step = _right(x)
    return whole, step[:1, :1].expand(step.shape)


def _four_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    whole, step = _right(x)
    return (whole / 18).round(), step * 18


def _saturated(x: Tensor) -> tuple[Tensor, Tensor]:
    whole, step = _right(x)
    return whole.clamp(-64, 63), step


def _with_inputs_rounded(model: nn.Module, rounded: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Changed:
    def hook(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        whole, step = rounded(args[0])
        return whole * step

    changed = _quantised(model, 127.0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(hook)
    return changed


@pytest.mark.parametrize(
    ("rounded", "fails"),
    [(_right, False), (_no_scale, True), (_scale_of_the_first_token, True), (_four_bits, True), (_saturated, True)],
)
@pytest.mark.parametrize("name", ["opt", "bert", "llama"])
def test_int8_inputs_may_cost_what_rounding_each_token_costs_and_no_more(name: str, rounded: Any, fails: bool) -> None:
    """Honest rounding is within its budget; no scale, another token's scale, four bits and saturation are not."""
    case = as_one(next(entry for entry in CASES if entry.name == name).load())
    verdict, why = tell(lossy.INPUTS_BUDGET, case, lambda model: _with_inputs_rounded(model, rounded), case.simplest)
    assert verdict is fails, why


@pytest.mark.parametrize("prop", [lossy.BUDGET, lossy.INPUTS_BUDGET])
def test_the_budget_is_the_size_of_an_honest_rounding(prop: Any) -> None:
    """What honest rounding uses of it, over examples, is one over the multiple: the derivation explains what is lost."""
    case = as_one(next(entry for entry in CASES if entry.name == "opt").load())

    def replace(model: nn.Module) -> Changed:
        return _quantised(model, 127.0) if prop is lossy.BUDGET else _with_inputs_rounded(model, _right)

    used = search(prop, case, replace, examples=16, seed=0).budgets_used
    assert len(used) >= 16 and median(used) == pytest.approx(1 / multiple("float32"), rel=0.2)


def test_inputs_are_budgeted_for_where_an_adapter_rounds_them() -> None:
    asked = {one.name: asked_of(one) for one in ADAPTERS if one.package == "torchao"}
    assert asked == {"int8": (lossy.BUDGET,), "int8_dynamic": (lossy.INPUTS_BUDGET,)}


@pytest.mark.skipif(not TORCHAO, reason="torchao is not installed (pip install 'replace-policy-harness[torchao]')")
@pytest.mark.filterwarnings("ignore")
class TestTorchao:
    """The real one, where it is installed."""

    def test_its_dynamic_quantisation_is_within_the_budget_unless_it_says_that_the_product_may_overflow(self) -> None:
        from torchao.utils import should_reduce_range

        chosen = next(one for one in ADAPTERS if one.name == "int8_dynamic")
        case = as_one(next(entry for entry in CASES if entry.name == "opt").load())
        failed, why = tell(lossy.INPUTS_BUDGET, case, chosen.replace, case.simplest)
        assert failed is False or should_reduce_range(torch.device("cpu")), why

    @pytest.mark.parametrize("name", ["int8", "int8_dynamic"])
    def test_it_passes_over_layers_that_are_no_linear_without_a_word(self, name: str) -> None:
        chosen = next(one for one in ADAPTERS if one.name == name)
        case = next(entry for entry in CASES if entry.name == "gpt2").load()
        with pytest.raises(NothingChanged, match=r"the model has no nn\.Linear"):
            chosen.replace(case.build(case.simplest))


def test_a_replacement_that_does_nothing_is_told_so() -> None:
    def idle(model: nn.Module) -> Changed:
        raise NothingChanged("it found nothing to do")

    case = as_one(next(entry for entry in CASES if entry.name == "gptj").load())
    assert explore(MODEL_EQUALITY, case, idle, examples=2, seed=0).nothing == "it found nothing to do"


@pytest.mark.parametrize("name", ["channels_last", "fuse_qkv"])
def test_lossless_replacements_of_a_vae_hold(name: str) -> None:
    chosen = next(one for one in ADAPTERS if one.name == name)
    judged = judge_whole(chosen, next(entry for entry in CASES if entry.name == "vae").load(), examples=3, seed=0)
    assert judged.verdict == "holds" and judged.proven > 5, judged


def test_an_unknown_adapter_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(CASES, ["adapters", "deepsped"]) == 2
    assert capsys.readouterr().err.strip() == "harness: no adapter is called 'deepsped'; did you mean deepspeed?"


def test_an_absent_package_is_said_with_what_to_install() -> None:
    absent = Adapter(name="x", title="x", package="a_package_that_nobody_has", distribution="a-package", extra="some")
    assert absent.unavailable == "a-package is not installed: pip install 'replace-policy-harness[some]'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_needs_a_gpu_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One line, exit status 2, and nothing written."""
    assert status(CASES, ["adapters", "liger", "--out", str(tmp_path / "found")]) == 2
    assert "runs on a CUDA GPU, and there is none here" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()


def test_a_run_writes_its_report_and_says_what_held(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit status 0, the table on the terminal, the same as a page and as data."""
    folder = tmp_path / "found"
    assert status(CASES, ["adapters", "channels_last", "--examples", "2", "--out", str(folder)]) == 0
    assert "channels_last: 2 judged, 0 defects" in capsys.readouterr().out
    assert "| unet |" in (folder / "adapters.md").read_text()
    assert json.loads((folder / "adapters.json").read_bytes())[0]["adapter"] == "channels_last"


@pytest.mark.skipif(not DEEPSPEED, reason="deepspeed is not installed (pip install 'replace-policy-harness[deepspeed]')")
@pytest.mark.filterwarnings("ignore")
class TestDeepSpeed:
    """The real one, where it is installed."""

    def test_each_of_its_policies_has_a_row(self) -> None:
        from deepspeed.module_inject import replace_policy

        theirs = (*replace_policy.replace_policies, *replace_policy.generic_policies)
        chosen = next(one for one in ADAPTERS if one.name == "deepspeed")
        assert {one.__name__ for one in theirs} == set(pieces(chosen))

    def test_its_distilbert_is_taken_for_pre_norm_and_a_script_shows_it(self) -> None:
        row = next(one for one in ROWS if one.policy == "HFDistilBertLayerPolicy")
        judged, scripts = judge(row, CASES, examples=4, seed=0)
        found = next(one for one in judged.defects if one.id == "HFDistilBertLayerPolicy-norm-position")
        assert found.shown and found.script in scripts and found.error is not None and found.error > 0.1

    def test_the_norms_of_its_opt_are_swapped_where_they_come_last_and_a_script_shows_it(self) -> None:
        row = next(one for one in ROWS if one.policy == "HFOPTLayerPolicy")
        weighted = dataclasses.replace(row, only={"norm_affine": (True,)})  # of norms without weights it says something else
        judged, scripts = judge(weighted, CASES, examples=40, seed=0)
        found = next(one for one in judged.defects if one.id == "HFOPTLayerPolicy-norms")
        assert "gives the two the other way round" in found.what and found.example == "norm_before=False"
        assert found.shown and found.script in scripts
