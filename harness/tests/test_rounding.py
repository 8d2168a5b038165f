"""The rounding tier: careless arithmetic is found, honest arithmetic is not, and its calibration is checked."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from harness.case import Case
from harness.check import check_property
from harness.faults.bank import find_faults
from harness.faults.fault import Fault
from harness.faults.lower import LOWER, LOWER_DIFFUSION
from harness.profiles import Profile
from harness.properties import BY_NAME, rounding, ways
from harness.properties.judged import judged
from harness.properties.rounding import ROUNDING
from harness.rounding.calibrate import Asked, drawn, main
from harness.rounding.calibration import FILE, CalibrationError, multiple, read
from harness.rounding.statistic import DTYPES, Allowance, Measured, other_numbers, pooled
from harness.rounding.tail import BEYOND, EXCEEDED, extrapolate
from harness.rounding.variants import VARIANTS
from harness.search import Found, judge, quiet, search
from harness.trial import Trial
from policies import replace_module
from policies.anatomy import Norm, NormKind
from policies.fused import attention, linear, transformer

from .outcomes import outcomes

LLAMA, GPT2, UNET, VAE = (
    next(entry for entry in CASES if entry.name == name).load() for name in ("llama", "gpt2", "unet", "vae")
)
FEW = Profile("few", 40)
IN_FLOAT64 = (
    "call forms",
    "cache",
    "edited cache",
    "fresh cache",
    "changing shapes",
    "long sequences",
    "state dict",
    "several threads",
)


def biases_in_half() -> contextlib.AbstractContextManager[Any]:
    """Every bias goes through float16."""
    honest = linear.Projection.__call__

    def call(self: linear.Projection, x: Tensor, emit: Any) -> Tensor:
        bias = None if self.bias is None else self.bias.half().to(self.bias.dtype)
        return honest(dataclasses.replace(self, bias=bias), x, emit)

    return mock.patch.object(linear.Projection, "__call__", call)


def probabilities_in_half() -> contextlib.AbstractContextManager[Any]:
    """Attention takes its values, and so its weighted sums, in bfloat16."""
    honest = attention.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        mask = attn_mask.bfloat16() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
        return honest(query.bfloat16(), key.bfloat16(), value.bfloat16(), attn_mask=mask, **kwargs).to(query.dtype)

    return mock.patch.object(attention, "scaled_dot_product_attention", attend)


def statistics_in_half() -> contextlib.AbstractContextManager[Any]:
    """RMS norms take their mean of squares in bfloat16."""
    honest = transformer.normalise

    def normalise(norm: Norm, x: Tensor) -> Tensor:
        if norm.kind is not NormKind.RMS:
            return honest(norm, x)
        unit = x * torch.rsqrt(x.bfloat16().pow(2).mean(-1, keepdim=True) + norm.eps).to(x.dtype)
        return unit if norm.weight is None else norm.weight * unit

    return mock.patch.object(transformer, "normalise", normalise)


def variance_in_one_pass() -> contextlib.AbstractContextManager[Any]:
    """Layer norms take the square of the mean from the mean of squares, of which nothing is left far from zero."""
    honest = transformer.normalise

    def normalise(norm: Norm, x: Tensor) -> Tensor:
        if norm.kind is not NormKind.LAYER:
            return honest(norm, x)
        mean = x.mean(-1, keepdim=True)
        variance = (x.square().mean(-1, keepdim=True) - mean.square()).clamp_min(0.0)
        unit = (x - mean) * torch.rsqrt(variance + norm.eps)
        return torch.addcmul(norm.bias, unit, norm.weight)

    return mock.patch.object(transformer, "normalise", normalise)


def test_a_variance_that_cancels_is_found() -> None:
    with variance_in_one_pass():
        verdict = check_property(BY_NAME["rounding float32"], GPT2, profile=FEW, seed=1, policy="", explain=False).verdict
    assert verdict.outcome == "failed"
    assert "of hidden states far from zero" in verdict.reason


@pytest.mark.parametrize("careless", [biases_in_half, probabilities_in_half, statistics_in_half])
def test_half_precision_inside_a_float32_model_is_found(careless: Callable[[], Any]) -> None:
    with careless():
        verdict = check_property(BY_NAME["rounding float32"], LLAMA, profile=FEW, seed=1, policy="", explain=False).verdict
    assert verdict.outcome == "failed" and verdict.examples <= 5
    assert "times the budget" in verdict.reason and "the original's own is" in verdict.reason


@pytest.mark.parametrize("fault", LOWER, ids=lambda fault: fault.id)
def test_what_goes_wrong_in_lower_dtypes_alone_is_found_there_and_nowhere_else(fault: Fault) -> None:
    with fault.inject(replace_module) as faulty:
        found = outcomes(("rounding float32",), LLAMA, faulty, beside=IN_FLOAT64)
    assert found == {"rounding float32": "failed"} | dict.fromkeys(IN_FLOAT64, "held")


@pytest.mark.parametrize(("fault", "case"), [*zip(LOWER_DIFFUSION, (UNET, VAE, UNET), strict=True)])
def test_what_goes_wrong_in_lower_dtypes_of_diffusion_models_alone_is_found(fault: Fault, case: Case) -> None:
    in_float64 = ("model equality", "call order", "changing shapes", "state dict")
    with fault.inject(replace_module) as faulty, mock.patch.object(rounding, "ways", return_value=(ways.once,)):
        found = outcomes(("rounding float32",), case, faulty, beside=in_float64)
    assert found == {"rounding float32": "failed"} | dict.fromkeys(in_float64, "held")


@pytest.mark.parametrize(
    ("fault", "way"),
    [("F67 squares", ways.with_outliers), ("F67 scores", ways.with_outliers), ("F67 sums", ways.behind_many_tokens)],
)
def test_what_overflows_or_stands_still_in_half_precision_is_found_in_one_way_alone(fault: str, way: ways.Way) -> None:
    (wrong,) = find_faults((fault,))
    found = {}
    large = (ways.with_outliers, ways.behind_many_tokens, ways.once)  # the last with large weights too
    usual = [one for one in ways.ways(LLAMA, "float16") if one not in large]
    with wrong.inject(replace_module) as faulty:
        for what, some in (("usual ways", usual), ("one way", [way])):
            with mock.patch.object(rounding, "ways", return_value=some):
                (found[what],) = outcomes(("rounding float16",), LLAMA, faulty).values()
    assert found == {"usual ways": "held", "one way": "failed"}


@pytest.mark.parametrize(("fault", "dtype"), [("F67 squares", "float16"), ("F62 lower", "bfloat16")])
def test_an_example_is_called_in_the_same_way_while_it_is_made_simple(fault: str, dtype: str) -> None:
    (wrong,) = find_faults((fault,))
    with wrong.inject(replace_module) as faulty:
        found = search(BY_NAME[f"rounding {dtype}"], LLAMA, faulty, examples=60, seed=4)
    assert found.failure is not None
    assert found.failure[0].values == LLAMA.simplest.values


def test_what_goes_wrong_in_what_is_compiled_in_half_precision_alone_is_found() -> None:
    honest = transformer.FusedTransformerLayer.__call__

    def wrong(self: Any, x: Tensor, call: Any, *rest: Any) -> Tensor:
        out = honest(self, x, call, *rest)
        return out + x if torch.compiler.is_compiling() and x.dtype is torch.bfloat16 else out

    compiled = mock.patch.object(rounding, "ways", return_value=(ways.when_compiled,))
    with compiled, mock.patch.object(transformer.FusedTransformerLayer, "__call__", wrong):
        found = outcomes(("rounding bfloat16",), LLAMA, replace_module)
    assert found == {"rounding bfloat16": "failed"} and ways.when_compiled in ways.ways(LLAMA, "bfloat16")


def test_what_goes_wrong_in_inference_mode_alone_is_found() -> None:
    honest = transformer.FusedTransformerLayer.__call__

    def wrong(self: Any, x: Tensor, call: Any, *rest: Any) -> Tensor:
        return honest(self, x, dataclasses.replace(call, cache=None) if torch.is_inference_mode_enabled() else call, *rest)

    with mock.patch.object(transformer.FusedTransformerLayer, "__call__", wrong):
        found = outcomes(("rounding float32", "cache"), LLAMA, replace_module)
    assert found == {"rounding float32": "failed", "cache": "held"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_honest_replacement_stays_within_its_budget(dtype: str) -> None:
    checked = check_property(BY_NAME[f"rounding {dtype}"], LLAMA, profile=FEW, seed=1, policy="LlamaLayerPolicy")
    budget = checked.budget
    assert checked.verdict.outcome == "held" and budget is not None
    assert (budget.case, budget.policy, budget.dtype) == ("llama", "LlamaLayerPolicy", dtype)
    assert budget.examples == 14 and 0.0 < budget.used_median <= budget.used_worst <= 1.0
    assert budget.multiple == multiple(dtype)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_honest_variant_stays_within_the_budget(dtype: str, variant: Any) -> None:
    generator, found = random.Random(11), []
    with quiet():
        for _ in range(4):
            asked = Asked(LLAMA, drawn(LLAMA, generator), dtype, variant)
            with torch.no_grad():
                original, allowed = asked.allowed()
                measured = asked.measured(original, allowed)
            found += [] if measured is None else [measured.ratio]
    assert found and max(found) <= multiple(dtype)


def test_a_result_in_another_dtype_is_a_disagreement() -> None:
    honest = LLAMA.run
    found = Found()

    class Widened(type(LLAMA)):  # type: ignore[misc]
        def run(self, model: Any, inputs: Any) -> dict[str, Tensor]:
            outputs = honest(model, inputs)
            fused = any(hasattr(type(one), "_fused_policy") for one in model.modules())
            return {name: one.float() if fused else one for name, one in outputs.items()}

    case: Case = Widened()
    called_once = mock.patch.object(rounding, "ways", return_value=[ways.once])
    with quiet(), called_once, pytest.raises(AssertionError, match=r"is torch.float32 of shape .* the original's torch.bfloat16"):
        judge(BY_NAME["rounding bfloat16"], case, replace_module, case.simplest, found)


def test_an_excess_that_other_numbers_do_not_show_is_no_alarm() -> None:
    unlucky = Found()
    ratios = iter([100.0, *[0.5] * len(other_numbers(LLAMA.simplest))])
    with quiet(), _measuring(ratios):
        judge(BY_NAME["rounding float16"], LLAMA, replace_module, LLAMA.simplest, unlucky)
    assert unlucky.budgets_used == [pytest.approx(0.5 / multiple("float16"))]


def test_an_excess_that_other_numbers_show_too_is_an_alarm() -> None:
    with quiet(), _measuring(iter([100.0] * 5)), pytest.raises(AssertionError, match="times the budget"):
        judge(BY_NAME["rounding float16"], LLAMA, replace_module, LLAMA.simplest, Found())


def test_a_result_that_is_lost_to_nan_is_no_bad_luck() -> None:
    """Other numbers that give a result are no excuse for these, which gave none."""
    lost = iter([math.inf, *[0.5] * len(other_numbers(LLAMA.simplest))])
    with quiet(), _measuring(lost), pytest.raises(AssertionError, match="error inf of its scale"):
        judge(BY_NAME["rounding float16"], LLAMA, replace_module, LLAMA.simplest, Found())


def _a_call(trial: Trial, dtype: str) -> rounding.Judged:
    return judged(trial, dtype, trial.case.run, trial.fresh_inputs())


@contextlib.contextmanager
def _measuring(ratios: Iterator[float]) -> Iterator[None]:
    """Every example is judged by a single call, and measures the next of ``ratios``."""
    measure = mock.patch.object(Allowance, "measure", side_effect=lambda *_: Measured(next(ratios), 1.0))
    with measure, mock.patch.object(rounding, "ways", return_value=(_a_call,)):
        yield


def test_a_dtype_in_which_no_original_runs_is_not_said_to_hold() -> None:
    def refuse(module: nn.Module, args: Any) -> None:
        if module.get_parameter("weight").dtype is torch.float16:
            raise NotImplementedError("not implemented for 'Half'")

    class Refusing(type(LLAMA)):  # type: ignore[misc]
        def build(self, example: Any) -> nn.Module:
            model: nn.Module = super().build(example)
            model.get_submodule("embed_tokens").register_forward_pre_hook(refuse)
            return model

    verdict = check_property(BY_NAME["rounding float16"], Refusing(), profile=FEW, seed=1, policy="").verdict
    assert verdict.outcome == "vacuous" and "in no example did the original run in this dtype" in verdict.reason


def test_errors_and_allowances_are_pooled_by_root_mean_square() -> None:
    together = pooled([Measured(3.0, 1.0), Measured(4.0, 7.0)])
    assert (together.error, together.allowed) == (pytest.approx(12.5**0.5), 5.0)


def test_a_level_of_an_exponential_tail_is_extrapolated() -> None:
    generator = random.Random(3)
    level = -torch.log(torch.tensor(EXCEEDED)).item()
    fitted = extrapolate([generator.expovariate(1.0) for _ in range(20_000)], seed=1)
    assert level * 0.9 <= fitted.level <= level * 1.6
    assert fitted.threshold == pytest.approx(-torch.log(torch.tensor(BEYOND)).item(), rel=0.05)


def test_a_tail_is_not_fitted_to_a_few_ratios() -> None:
    with pytest.raises(ValueError, match="a tail is fitted to 5000 ratios or more, got 10"):
        extrapolate([1.0] * 10, seed=1)


def test_every_dtype_has_a_property_and_a_multiple_with_its_origin() -> None:
    made = read()
    assert [one.name for one in ROUNDING] == [f"rounding {dtype}" for dtype in DTYPES]
    for dtype in DTYPES:
        fitted = made.dtypes[dtype]
        assert multiple(dtype) == fitted.multiple and fitted.ratios > 5000 and fitted.confirmed == 0
        assert set(fitted.worst_by_variant) == {variant.name for variant in VARIANTS}


def _changed(file: Path, **fields: Any) -> Path:
    made = msgspec.json.decode(FILE.read_bytes())
    file.write_bytes(msgspec.json.encode({**made, **fields}))
    return file


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"floor": 1.0}, "made for a floor of 1.0, the statistic has 0.25; make it again"),
        ({"schema": 2}, "calibration version 2, this harness reads version 1"),
        ({"dtypes": {}}, "no multiple for bfloat16, float16, float32; make it again"),
        ({"dtypes": {"float32": {"multiple": -1}}}, "not a calibration (Expected `float` > 0.0"),
        ({"surprise": 1}, "not a calibration (Object contains unknown field `surprise`"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    file = _changed(tmp_path / "calibration.json", **fields)
    with pytest.raises(CalibrationError) as refusal:
        read(file)
    assert str(refusal.value).startswith(f"{file}: {reason}") and "\n" not in str(refusal.value)


def test_a_calibration_that_is_cut_short_or_missing_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    with pytest.raises(CalibrationError, match="no calibration can be read here"):
        read(file)
    file.write_bytes(FILE.read_bytes()[:100])
    with pytest.raises(CalibrationError, match="not a calibration"):
        read(file)


def test_the_command_leaves_the_calibration_alone_where_there_are_too_few_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calibration.json"
    assert main([LLAMA], ["--examples", "6", "--out", str(out)]) == 2
    assert "got" in capsys.readouterr().err and not out.exists()


def test_an_error_is_relative_to_the_output_and_infinite_where_it_is_none() -> None:
    allowance = Allowance(
        exact=torch.full((4,), 5.0), dtype=torch.float32, valid=None, scale=5.0, own=3.0, propagated=4.0, floor=12.0
    )
    assert allowance.error(torch.full((4,), 6.0)) == pytest.approx(0.2)
    assert allowance.error(torch.full((4,), torch.nan)) == float("inf")
    assert allowance.total == 13.0
