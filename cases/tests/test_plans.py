"""What a plan runs, and on what: with oneDNN or without, compiled, exported, in each dtype."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

import policies
from cases.bert import BertCase
from cases.llama import LlamaCase
from cases.unet import UNetCase
from harness.case import Case
from harness.check import check_property
from harness.plans import by_plan
from harness.profiles import depth
from harness.properties import BY_NAME
from policies.fused import onednn, widened
from policies.plans import PlanUnavailable

from .models import CASES, model_of
from .table import see_held


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


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
def test_compiled_replacements_keep_to_onednn(case: Case, dynamic: bool) -> None:
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
            layer = replaced.get_submodule(one.path)
            layer.compile(backend=aot_autograd(fw_compiler=backend), fullgraph=True, dynamic=dynamic)
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


@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
@pytest.mark.parametrize("name", ["layer equality", "cache", "in float32", "rounding float32"])
def test_plan_onednn_is_judged_in_float64_too_where_its_calls_run_plain(name: str) -> None:
    with by_plan("onednn") as replacer:
        checked = check_property(
            BY_NAME[name], LlamaCase(), profile=depth("quick", 8), seed=1, policy="onednn", replacer=replacer
        )
    see_held(checked.verdict)


def test_a_plan_for_inference_trains_by_the_public_operators() -> None:
    case = LlamaCase()
    model = case.build(case.simplest)
    policies.replace_module(model, plan="onednn")
    (output,) = case.run(model, case.inputs(case.simplest)).values()
    output.sum().backward()
    assert all(p.grad is not None for p in model.layers.parameters())


@pytest.mark.skipif(not onednn.available(), reason="torch's operators are not what they were")
@pytest.mark.parametrize("case", [BertCase(), UNetCase()], ids=lambda case: case.name)
def test_a_plan_that_runs_nothing_of_a_dtype_is_not_the_plan_that_is_shown(case: Case) -> None:
    """oneDNN multiplies no float64."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        model = model_of(case).to(dtype)
        policies.replace_module(model)
        name = str(dtype).removeprefix("torch.")
        widens = dtype in widened.HALVES and widened.slow(dtype)
        runs = (
            f"onednn ({name} in float32)" if widens else "onednn" if onednn.multiplies(dtype) else f"plain (no oneDNN in {name})"
        )
        assert f"plan: {runs}, " in repr(model)
        restored = model.float()
        assert "plan: onednn, " in repr(restored)


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor of AVX2 alone."""
    monkeypatch.setattr(onednn, "dtypes", lambda: frozenset({torch.float32}))
    widened.slow.cache_clear()
    yield
    widened.slow.cache_clear()


@pytest.mark.usefixtures("no_bfloat16")
def test_where_onednn_has_no_bfloat16_products_are_in_float32() -> None:
    original: Any = model_of(BertCase()).bfloat16()
    replaced = copy.deepcopy(original)
    with pytest.raises(PlanUnavailable, match=r"^plan packed runs on this CPU in float32, not in bfloat16; use plain or auto$"):
        policies.replace_module(replaced, plan="packed")
    policies.replace_module(replaced)
    assert "plan: onednn (bfloat16 in float32), QKV packed" in repr(replaced)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad(), mock.patch.object(widened, "linear", wraps=widened.linear) as linear:
        for model in (replaced, torch.compile(replaced, backend="eager")):
            torch.testing.assert_close(model(ids)[0], original(ids)[0], atol=0.1, rtol=0.1)
    assert linear.called


def test_what_a_build_of_torch_can_do_is_not_asked_in_exact_mode() -> None:
    """The probe's answer is kept for the process, so it must come out the same inside exact mode."""
    from harness.exact import exact_mode

    honest = onednn.dtypes()
    onednn.dtypes.cache_clear()
    with exact_mode():
        assert onednn.dtypes() == honest
