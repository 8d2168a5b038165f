"""Replaced UNets and VAEs are good citizens: same function, same surface, no trace after a revert, nothing silent."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from harness.case import Case, Inputs
from policies.replace import replace_module
from policies.swap import UnsupportedLayer
from policies.unet import UNetPolicy
from policies.vae import VAEPolicy

from .diffusion_pairs import CASES, UNET, VAE, assert_close, example, pair

pytestmark = pytest.mark.usefixtures("no_gradients")

POLICIES = {"unet": UNetPolicy, "vae": VAEPolicy}


def assert_same_state(mine: nn.Module, its: nn.Module) -> None:
    for (name, parameter), (other_name, other) in zip(mine.named_parameters(), its.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(parameter, other)
        assert parameter.stride() == other.stride()
        assert parameter.untyped_storage().nbytes() == other.untyped_storage().nbytes()
    for one, other in zip(mine.modules(), its.modules(), strict=True):
        assert type(one) is type(other)
        assert one.__dict__.keys() == other.__dict__.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_large_enough_model_in_float32_agrees_on_every_plan(case: Case) -> None:
    """Large enough for oneDNN's product and for convolutions as products."""
    if case is UNET:
        config = {**UNET.config(example(UNET, blocks="CC", layers=2)), "block_out_channels": (64, 128)}
        model: Any = UNet2DConditionModel(**{**config, "norm_num_groups": 8, "cross_attention_dim": 48})
        inputs = {"sample": torch.randn(2, 4, 16, 16), "timestep": 3, "encoder_hidden_states": torch.randn(2, 40, 48)}
    else:
        model = AutoencoderKL(**{**VAE.config(example(VAE, blocks="DD")), "block_out_channels": (64, 128)})
        inputs = {"sample": torch.randn(2, 3, 32, 32)}
    model.eval()
    expected = model(**inputs).sample
    for plan in ("plain", "auto"):
        handle = replace_module(model, plan=plan)
        assert_close({"sample": model(**inputs).sample}, {"sample": expected}, 1e-4)
        handle.revert()


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("weights", ["contiguous", "channels_last"])
def test_reverting_leaves_no_trace(case: Case, weights: str) -> None:
    original, _, inputs = pair(case, weights=weights)
    model = copy.deepcopy(original)
    handle = replace_module(model)
    case.run(model, inputs)
    handle.revert()
    handle.revert()
    assert_same_state(model, original)
    assert torch.equal(case.run(model, inputs)["sample"], case.run(original, inputs)["sample"])


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_no_weight_is_held_twice(case: Case) -> None:
    original, replaced, inputs = pair(case)
    case.run(replaced, inputs)
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in replaced.parameters()}
    held = [
        value.whole.weight.untyped_storage().data_ptr()
        for module in replaced.modules()
        for name, value in vars(module).items()
        if name == "_fused_packed"
    ]
    assert held
    assert set(held) <= storages.keys()
    assert sum(storages.values()) == sum(one.untyped_storage().nbytes() for one in original.parameters())


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_the_surface_stays_the_originals(case: Case) -> None:
    original, replaced, _ = pair(case)
    cls = type(original)
    assert isinstance(replaced, cls)
    assert type(replaced).__name__ == cls.__name__
    assert inspect.signature(type(replaced).forward) == inspect.signature(cls.forward)
    assert replaced.config == original.config
    assert (replaced.dtype, replaced.device) == (original.dtype, original.device)
    assert list(replaced.state_dict()) == list(original.state_dict())
    assert f"replaced by {POLICIES[case.name].__name__}, plan: " in repr(replaced)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_policy_derived_from_one_of_these_is_the_one_that_a_model_and_its_copy_name(case: Case) -> None:
    mine = type("Mine", (POLICIES[case.name],), {})
    model = case.build(example(case))
    replace_module(model, policies=(mine,))
    assert "replaced by Mine, plan: " in repr(copy.deepcopy(model))
    assert replace_module(model).left[0].reason == "already replaced by Mine"


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("given_as", ["contiguous", "channels_last"])
@pytest.mark.parametrize("weights", ["contiguous", "channels_last"])
def test_an_image_comes_back_in_the_originals_memory_format(case: Case, batch: int, given_as: str, weights: str) -> None:
    original, replaced, inputs = pair(case, batch=batch, format=given_as, weights=weights)
    expected = case.run(original, inputs)["sample"].stride()
    assert case.run(replaced, inputs)["sample"].stride() == expected
    assert case.run(replaced.train(), inputs)["sample"].stride() == expected


@pytest.mark.parametrize(("given_as", "weights"), [("contiguous", "channels_last"), ("channels_last", "contiguous")])
@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_an_image_comes_back_from_a_compiled_model_in_the_originals_memory_format(
    case: Case, given_as: str, weights: str
) -> None:
    original, replaced, inputs = pair(case, batch=1, format=given_as, weights=weights)
    expected = case.run(original, inputs)["sample"].stride()
    assert case.run(torch.compile(replaced, backend="eager"), inputs)["sample"].stride() == expected


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("given_as", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [False, True])
def test_an_images_gradient_comes_back_in_the_images_memory_format(case: Case, batch: int, given_as: str, training: bool) -> None:
    """As guidance by a loss asks for it, and views it."""
    original, replaced, inputs = pair(case, batch=batch, format=given_as)
    image = inputs.kwargs["sample" if case is UNET else "image"].requires_grad_()
    with torch.enable_grad():
        mine, its = (
            torch.autograd.grad(case.run(model.train(training), inputs)["sample"].square().mean(), image)[0]
            for model in (original, replaced)
        )
    for layout in (torch.contiguous_format, torch.channels_last):
        assert its.is_contiguous(memory_format=layout) == mine.is_contiguous(memory_format=layout)
    torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-6)


def test_saved_files_are_the_originals(tmp_path: Path) -> None:
    original, replaced, inputs = pair(UNET)
    original.save_pretrained(tmp_path / "original")
    replaced.save_pretrained(tmp_path / "replaced")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        mine, its = (tmp_path / side / name for side in ("replaced", "original"))
        assert mine.read_bytes() == its.read_bytes()
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)


def test_training_runs_the_originals_forward_and_says_so() -> None:
    original, replaced, inputs = pair(UNET)
    with torch.enable_grad():
        for model in (original, replaced):
            model.train()
            UNET.run(model, inputs)["sample"].square().mean().backward()
    for mine, its in zip(replaced.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-4)
    assert replaced.fused.fallbacks["training mode"] == 1
    assert replaced.fused.calls == 0


def test_gradients_in_eval_mode_reach_every_parameter() -> None:
    original, replaced, inputs = pair(UNET)
    with torch.enable_grad():
        for model in (original, replaced):
            UNET.run(model, inputs)["sample"].square().mean().backward()
    for mine, its in zip(replaced.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-4)


def test_shared_projections_stay_shared() -> None:
    original = UNET.build(example(UNET))
    first, second = [one for one in original.modules() if type(one).__name__ == "Attention"][:2:1]
    second.to_q.weight = first.to_q.weight
    replaced: Any = copy.deepcopy(original)
    replace_module(replaced)
    mine = [one for one in replaced.modules() if type(one).__name__ == "Attention"]
    assert mine[0].to_q.weight is mine[1].to_q.weight
    inputs = UNET.inputs(example(UNET))
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)


def test_a_self_attention_mask_is_applied() -> None:
    original, replaced, inputs = pair(UNET, batch=2)
    tokens = 16
    mask = (torch.arange(tokens) % 3 > 0).expand(2, tokens).float()
    masked = Inputs(kwargs={**inputs.kwargs, "attention_mask": mask})
    assert_close(UNET.run(replaced, masked), UNET.run(original, masked), 1e-4)
    assert not torch.allclose(UNET.run(replaced, masked)["sample"], UNET.run(replaced, inputs)["sample"])


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_models_that_must_be_refused_are_refused_by_name_and_untouched(case: Case) -> None:
    assert case.refusals()
    for refusal in case.refusals():
        model = refusal.build()
        classes = [type(one) for one in model.modules()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handle = replace_module(model)
        assert not handle.replaced
        assert any(refusal.feature in one.reason for one in handle.left), refusal.name
        assert [type(one) for one in model.modules()] == classes


@pytest.mark.parametrize(("policy", "case"), [(UNetPolicy, UNET), (VAEPolicy, VAE)], ids=["unet", "vae"])
def test_deepspeeds_surface(policy: Any, case: Case) -> None:
    model = case.build(example(case))
    assert policy().match(model)
    assert not policy().match(nn.Linear(2, 2))
    assert policy().apply(model, enable_cuda_graph=False) is model
    assert isinstance(model, policy._orig_layer_class)
    with pytest.raises(UnsupportedLayer, match="Linear: not of class"):
        policy().apply(nn.Linear(2, 2))


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_published_sizes_are_as_large_as_stated(case: Case) -> None:
    cls = UNet2DConditionModel if case is UNET else AutoencoderKL
    for workload in case.workloads:
        with torch.device("meta"):
            model = cls(**workload.config)
        size = sum(4 * one.numel() for one in model.parameters())
        assert size == pytest.approx(workload.weight_bytes, rel=0.01), workload.name


def test_a_model_built_by_a_replaced_ones_class_is_one_of_the_originals() -> None:
    """As a moving average of weights builds its own."""
    original, replaced, _ = pair(UNET)
    other = type(replaced).from_config(replaced.config)
    assert type(other) is type(original)
