"""What is timed, for how long, and what must be shown before."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from cases import CASES
from cases.bert import BertCase
from harness.bench import rows
from harness.bench.columns import EAGER, GRAPHED, ORIGINAL, REPLACED, SDPA, Column, original_columns, planned_column
from harness.bench.gate import NotTimed, kind_of_equality, show_equal
from harness.bench.jobs import Job, JobPlan, plan_jobs
from harness.bench.products import products_fraction, products_of
from harness.bench.rates import measure_rates
from harness.bench.rows import time_job
from harness.case import Workload
from harness.hf.workloads import steps_by_itself
from harness.placed import placed
from harness.registry import CaseEntry, choose
from harness.timing.cpu import CpuDevice
from harness.timing.devices import Call
from harness.timing.opening import open_device
from harness.timing.paired import compare
from harness.trial import graphs_of
from policies import replace_module
from policies.fused.capture import EmulatorBackend, captured_by
from policies.plans import CAPTURED, Plan

RATES = {"layer float32": 1e11, "layer bfloat16": 2e11, "image float32": 1e11, "image bfloat16": 2e11}
TINY = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}


class Bench:
    """A case whose workload is one linear layer, with attention to switch or without."""

    name = "linear"

    def __init__(self, *workloads: Workload) -> None:
        self.workloads = workloads
        self.unavailable = None

    def load(self) -> Bench:
        return self

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        return {"input": torch.ones(2, 3)}

    def workload_step(self, module: nn.Module, call: dict[str, Any]) -> Any:
        return lambda: module(**call)

    def workloads_on(self, device: str) -> tuple[Workload, ...]:
        return self.workloads


def workload(name: str = "w", tokens: int = 1, weight_bytes: int = 4) -> Workload:
    return Workload(name=name, phase="prefill", batch=1, tokens=tokens, weight_bytes=weight_bytes)


def column(module: nn.Module, replaced: int | None = None) -> Column:
    return Column(name="some", module=module, call=lambda: module(torch.ones(2, 3)), prepare_seconds=0.0, replaced=replaced)


def test_original_columns_are_copies_that_a_replacement_does_not_reach() -> None:
    class Switchable(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.config = type("Config", (), {"_attn_implementation": "sdpa"})()

    for module, names in ((nn.Linear(3, 4), [ORIGINAL]), (Switchable(), [EAGER, SDPA])):
        columns = original_columns(Bench(), module, workload())  # type: ignore[arg-type]
        assert [one.name for one in columns] == names
        assert all(one.module is not module for one in columns)
        assert all(one.module.weight.data_ptr() != module.weight.data_ptr() for one in columns)


def test_equal_columns_pass_the_gate_with_their_error() -> None:
    module = nn.Linear(3, 4)
    with torch.no_grad():
        assert show_equal(module(torch.ones(2, 3)), column(module), column(copy.deepcopy(module), 1), "float32") == 0.0


@pytest.mark.parametrize("lie", ["itself", "shared weights", "nothing replaced", "another function"])
def test_the_gate_lets_no_lie_be_timed(lie: str) -> None:
    module = nn.Linear(3, 4)
    other = copy.deepcopy(module)
    subjects = {
        "itself": (column(module, 1), "not separate models"),
        "shared weights": (column(other, 1), "not separate models"),
        "nothing replaced": (column(other, 0), "no layer was replaced"),
        "another function": (column(other, 1), "some does not compute the same: differs by"),
    }
    if lie == "shared weights":
        other.weight = module.weight
    if lie == "another function":
        other.weight.data *= 1.01
    subject, reason = subjects[lie]
    with torch.no_grad(), pytest.raises(NotTimed, match=reason):
        show_equal(module(torch.ones(2, 3)), column(module), subject, "float32")


def plan(*workloads: Workload, budget: float) -> JobPlan:
    return plan_jobs([Bench(*workloads)], device="cpu", budget=budget, rates=RATES, free_bytes=2**40)  # type: ignore[list-item]


def test_a_long_call_gets_the_time_that_an_interval_needs() -> None:
    one = plan(workload(tokens=10**10, weight_bytes=20), budget=1000.0)
    assert one.pair_seconds(one.jobs[0]) == pytest.approx(44.0)


def test_the_first_job_is_taken_and_what_does_not_fit_is_left_out_with_the_reason() -> None:
    one = plan(workload("big", tokens=10**12, weight_bytes=20), workload("vast", tokens=10**13, weight_bytes=20), budget=10.0)
    assert [job.workload.name for job in one.jobs] == ["big"]
    assert one.pair_seconds(one.jobs[0]) == 5.0
    assert {reason for _, reason in one.left_out} == {"no time left in a budget of 10 s"}


def test_the_jobs_that_are_taken_fit_the_budget() -> None:
    one = plan(*(workload(str(n)) for n in range(200)), budget=60.0)
    assert 5 < len(one.jobs) < 200
    assert one.estimate <= 60.0


def test_what_needs_more_memory_than_is_free_is_left_out_with_its_need() -> None:
    one = plan(workload("small"), workload("huge", weight_bytes=2**50), budget=1e6)
    assert {job.workload.name for job in one.jobs} == {"small"}
    assert all("GiB" in reason for _, reason in one.left_out)


def test_a_call_s_own_products_are_done_again_and_nothing_else_of_it() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 5)
    with torch.no_grad():
        again = products_of(lambda: second(first(torch.ones(2, 3)).softmax(-1)))
        assert again is not None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            again()
    done = {one.key: one.count for one in profile.key_averages()}
    assert done["aten::addmm"] == 2 and "aten::softmax" not in done


def test_a_call_without_products_has_no_fraction() -> None:
    assert products_fraction(lambda: torch.ones(3).sum(), open_device("cpu")) is None


def test_a_diffusion_model_needs_memory_for_fewer_columns_and_compiled_columns_for_more() -> None:
    layer = plan(workload(weight_bytes=1000), budget=1e6).jobs
    image = plan(Workload(name="w", phase="image", batch=1, tokens=8, weight_bytes=1000), budget=1e6).jobs
    needs = {one.compiled: one.memory_bytes for one in layer if one.dtype == "float32"}
    assert needs == {False: 4500.0, True: 8500.0}
    assert image[0].memory_bytes == 2500.0


def test_a_compiled_replacement_passes_the_gate_by_what_it_was_compiled_of() -> None:
    """Inside a compiler a fused layer does not count its calls."""
    case = BertCase()
    original = case.build(case.simplest)
    module = copy.deepcopy(original)
    count = len(replace_module(module).replaced)
    kwargs = case.inputs(case.simplest).kwargs

    def of(model: nn.Module) -> Column:
        return Column(name="c", module=model, call=lambda: model(**kwargs), prepare_seconds=0.0)

    torch.compiler.reset()
    compiled = dataclasses.replace(
        of(module), call=torch.compile(lambda: module(**kwargs), backend="eager"), replaced=count, plain=of(module).call
    )
    with torch.no_grad():
        assert show_equal(of(original).output(), of(original), compiled, "float32") < 1e-5


class TwoClocks(CpuDevice):
    """A CPU that has what a GPU has: a clock of its own, and graphs."""

    clocks = ("end_to_end", "device")
    graphs = True
    capturing = True

    def captured(self, call: Call) -> Call:
        if not self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        output = call()
        return lambda: output


@pytest.mark.parametrize("capturing", [True, False])
def test_on_a_device_with_graphs_and_a_clock_of_its_own_both_are_columns(capturing: bool) -> None:
    (entry,) = choose(CASES, ["bert"])
    small = Workload(name="small", phase="encoder", batch=1, tokens=3, config=TINY)
    device = TwoClocks()
    device.capturing = capturing
    rows = time_job(Job(entry, small, "float32"), device=device, seconds_a_pair=0.05, seed=0)
    assert {row.clock for row in rows if row.verdict != "FAILED"} == {"end-to-end", "device"}
    graphed = [row for row in rows if row.subject == GRAPHED.format(REPLACED)]
    if capturing:
        assert {(row.baseline, row.clock) for row in graphed} == {(GRAPHED.format(SDPA), c) for c in ("end-to-end", "device")}
        assert all(row.verdict != "FAILED" for row in graphed)
    else:
        (failed,) = graphed
        assert failed.reason == "RuntimeError: operation not permitted when stream is capturing"


def test_what_disturbed_a_row_stands_beside_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def disturbed(*sides: Any, **options: Any) -> Any:
        return dataclasses.replace(compare(*sides, **options), warnings=("another process ran",))

    monkeypatch.setattr(rows, "compare", disturbed)
    (entry,) = choose(CASES, ["bert"])
    small = Workload(name="small", phase="encoder", batch=1, tokens=3, config=TINY)
    timed = time_job(Job(entry, small, "float32"), device=open_device("cpu"), seconds_a_pair=0.05, seed=0)
    assert timed
    assert all(row.warnings == ("another process ran",) and "another" not in row.reason for row in timed)


def test_a_pair_that_raises_costs_nothing_that_was_measured_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = itertools.count()

    def falling(*sides: Any, **options: Any) -> Any:
        if next(measured):
            raise torch.OutOfMemoryError("no memory left")
        return compare(*sides, **options)

    monkeypatch.setattr(rows, "compare", falling)
    (entry,) = choose(CASES, ["bert"])
    small = Workload(name="small", phase="encoder", batch=1, tokens=3, config=TINY)
    first, *others = time_job(Job(entry, small, "float32"), device=open_device("cpu"), seconds_a_pair=0.05, seed=0)
    assert first.baseline_seconds and first.subject_seconds
    assert {one.reason for one in others} == {"OutOfMemoryError: no memory left"}
    assert len({(one.baseline, one.subject) for one in (first, *others)}) == 1 + len(others)


LIGHT = 60 * 2**20
LIGHT_WORKLOADS = [
    (entry, one) for entry in CASES if entry.unavailable is None for one in entry.load().workloads if one.weight_bytes < LIGHT
]


@pytest.mark.parametrize(("entry", "light"), LIGHT_WORKLOADS, ids=lambda one: one.name)
def test_a_timed_call_is_made_where_its_module_lies(entry: CaseEntry, light: Workload) -> None:
    case = placed(entry.load(), "meta")
    with case.surroundings(), torch.no_grad():
        module = case.workload_module(light)
        assert original_columns(case, module, light)[0].output().device.type == "meta"


@pytest.mark.parametrize(("name", "config"), [("llama", TINY), ("bloom", {"hidden_size": 8, "n_head": 2})])
def test_a_step_on_a_static_cache_is_the_same_at_every_time_and_replayed_from_a_graph(name: str, config: dict[str, int]) -> None:
    (entry,) = choose(CASES, (name,))
    case = entry.load()
    step = Workload(name="tiny", phase="decode", batch=2, tokens=1, past=3, room=6, config=config)
    with case.surroundings(), torch.no_grad(), captured_by(EmulatorBackend):
        module = case.workload_module(step)
        eager, *others = original_columns(case, module, step)
        graphed = planned_column(case, module, step, Plan.GRAPHED)
        expected = eager.output()
        for one in (*others, graphed, graphed, eager, graphed):
            torch.testing.assert_close(one.output(), expected)
    (graph,) = graphs_of(graphed.module)
    assert (graph.captures, graph.replays, dict(graph.eager)) == (1, 3, {})


@pytest.mark.skipif(not steps_by_itself(), reason="static caches of this release of transformers are told where to write")
def test_on_a_gpu_steps_of_decoding_are_timed_on_a_static_cache_too_and_there_alone_by_plans_that_capture() -> None:
    (entry,) = choose(CASES, ("llama",))
    steps = [one for one in entry.load().workloads_on("cuda") if one.past]
    assert [(one.room, Job(entry, one, "bfloat16").plans("cuda")) for one in steps] == [(0, ()), (1024, CAPTURED)]
    assert not any(one.room for one in entry.load().workloads_on("cpu"))


def test_a_run_that_goes_on_times_what_it_was_begun_with_whatever_time_and_memory_are_left() -> None:
    jobs = [Bench(*(workload(str(n)) for n in range(20)), workload("huge", weight_bytes=2**50))]
    begun = ("linear: 3 prefill batch 1, 1 tokens float32", "linear: huge prefill batch 1, 1 tokens bfloat16")
    one = plan_jobs(jobs, device="cpu", budget=1.0, rates=RATES, free_bytes=2**40, keys=begun)  # type: ignore[arg-type]
    assert {job.key for job in one.jobs} == set(begun)
    assert one.left_out == ()


def test_rates_are_known_for_each_kind_of_workload_and_dtype() -> None:
    rates = measure_rates(open_device("cpu"), ("float32", "bfloat16"))
    assert rates.keys() == RATES.keys()
    assert all(one > 0 for one in rates.values())


def test_only_images_in_float32_on_a_gpu_are_compared_as_tf32_rounds_them() -> None:
    kinds = {
        (dtype, device, images): kind_of_equality(dtype, device, images=images)
        for dtype in ("float32", "float16")
        for device in ("cpu", "cuda")
        for images in (True, False)
    }
    assert kinds.pop(("float32", "cuda", True)) == "float32 with TF32"
    assert all(found == dtype for (dtype, _, _), found in kinds.items())
