"""UNets and VAEs through captured graphs. The emulator stands in for CUDA graphs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from torch import nn

from harness.case import Example, Inputs
from harness.check import check_property
from harness.evidence.script import script
from harness.exact import exact_mode
from harness.faults.bank import find_faults
from harness.profiles import Profile
from harness.properties.captured import CAPTURED
from harness.properties.gradients import GRADIENTS
from harness.search import quiet, tell
from harness.trial import Trial
from policies.fused.capture import EmulatorBackend, captured_by
from policies.replace import replace_module
from policies.swap import Swap
from policies.unet import UNetPolicy
from policies.vae import VAEPolicy

from .diffusion_pairs import UNET, VAE, assert_close, edits, pair

pytestmark = pytest.mark.usefixtures("no_gradients")


def _graphed_unet(**values: Any) -> tuple[Any, Any, Inputs]:
    original, _, inputs = pair(UNET, **values)
    with captured_by(EmulatorBackend):
        return original, UNetPolicy.apply(copy.deepcopy(original)), inputs


def test_a_loop_over_timesteps_captures_one_graph() -> None:
    original, replaced, inputs = _graphed_unet()
    for step in range(1000, 0, -100):
        for timestep in (step, torch.tensor(step)):
            call = Inputs(kwargs={**inputs.kwargs, "timestep": timestep})
            assert_close(UNET.run(replaced, call), UNET.run(original, call), 1e-4)
    graph = replaced.fused.graphs["forward"]
    assert (graph.captures, graph.replays, dict(graph.eager)) == (1, 20, {})


def test_a_graphed_unet_follows_everything_that_may_change() -> None:
    original, replaced, inputs = _graphed_unet(addition="text_time", blocks="CC", batch=2)
    inputs.kwargs["timestep"] = 3

    def compare() -> None:
        assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)

    compare()
    for tensor in inputs.kwargs["added_cond_kwargs"].values():
        tensor.add_(1.0)
    compare()
    for edit in edits().values():
        edit(original)
        edit(replaced)
        compare()
    for model in (original, replaced):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    compare()
    for model in (original, replaced):
        model.set_attn_processor(SlicedAttnProcessor(1))
    compare()
    assert dict(replaced.fused.graphs["forward"].eager) == {"attention processor SlicedAttnProcessor": 1}


def test_a_processor_of_a_librarys_name_is_not_taken_for_the_librarys() -> None:
    """It may count its calls, as what edits an image by its prompt does."""
    original, replaced, inputs = _graphed_unet()
    kind = type("AttnProcessor2_0", (AttnProcessor2_0,), {})
    for model in (original, replaced):
        model.set_attn_processor(kind())
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)
    assert dict(replaced.fused.graphs["forward"].eager) == {"attention processor AttnProcessor2_0": 1}


@pytest.mark.parametrize("way", ["decode", "encode", "forward", "sample"])
@pytest.mark.parametrize("tiling", [False, True])
def test_a_graphed_vae_gives_what_the_original_gives(way: str, tiling: bool) -> None:
    values = {"way": way, "tiling": tiling, "height": 12, "width": 10, "batch": 2, "slicing": True}
    original, _, inputs = pair(VAE, **values)
    with captured_by(EmulatorBackend):
        replaced: Any = VAEPolicy.apply(copy.deepcopy(original))
    for _ in range(2):
        assert_close(VAE.run(replaced, inputs), VAE.run(original, inputs), 1e-4)
    graphs = replaced.fused.graphs.values()
    assert sum(one.replays for one in graphs) > sum(one.captures for one in graphs)
    assert not any(one.eager for one in graphs)


def test_a_graph_whose_results_are_overwritten_fails_its_property_and_a_script_shows_it() -> None:
    (fault,) = find_faults(("F78 outputs",))
    with quiet(), fault.inject(replace_module) as faulty:
        fails, problem = tell(CAPTURED, VAE, faulty, VAE.simplest)
        assert fails and "the first call's result after another call" in str(problem)
        assert "captured_by(BY_DEVICE[trial.case.device])" in script(CAPTURED, VAE, VAE.simplest, faulty)
    assert tell(CAPTURED, VAE, replace_module, VAE.simplest)[0] is False


def test_gradients_that_are_nothing_but_rounding_are_not_compared() -> None:
    """A key's bias shifts all scores of a query alike; what float64 makes of its gradient, autocast leaves as it is."""
    example = Example({**VAE.simplest.values, "way": "decode", "mid_attention": True}, seed=34850)
    with exact_mode():
        GRADIENTS.check(Trial(VAE, example, replace_module))


def test_a_replacement_that_captures_nothing_is_no_evidence_about_graphs() -> None:
    class Uncaptured(VAEPolicy):
        @classmethod
        def plan(cls, module: nn.Module, *, enable_cuda_graph: bool = False) -> Swap:
            return super().plan(module, enable_cuda_graph=False)

    replacer = functools.partial(replace_module, policies=(Uncaptured,))
    once = dataclasses.replace(CAPTURED, least=1)
    verdict = check_property(once, VAE, profile=Profile("few", 1), seed=0, policy="Uncaptured", replacer=replacer).verdict
    assert (verdict.outcome, verdict.reason) == ("vacuous", "no call was replayed from a graph")
