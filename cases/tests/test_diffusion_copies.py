"""Copies of replaced diffusion models, and of their parts."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from harness.case import Case
from policies.fused.swapped import Swapped
from policies.replace import replace_module

from .diffusion_pairs import CASES, UNET, VAE, assert_close, example, pair
from .replicas import replica

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_are_replaced_too_and_stand_alone(case: Case, copied: Any) -> None:
    original, replaced, inputs = pair(case)
    twin = copied(replaced)
    replaced.requires_grad_(False)
    for parameter in replaced.parameters():
        parameter.zero_()
    assert_close(case.run(twin, inputs), case.run(original, inputs), 1e-4)
    assert (twin.fused.calls, replaced.fused.calls) == (1, 0)
    assert twin.fused is not replaced.fused


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_replica_computes_with_its_own_weights(case: Case) -> None:
    original, replaced, inputs = pair(case)
    case.run(replaced, inputs)
    assert_close(case.run(replica(replaced, 1.3), inputs), case.run(replica(original, 1.3), inputs), 1e-4)
    assert_close(case.run(replaced, inputs), case.run(original, inputs), 1e-4)


def assert_same_images(mine: Tensor, its: Tensor) -> None:
    assert_close({"images": mine}, {"images": its}, 1e-4)
    assert mine.stride() == its.stride()


def _images(module: Any) -> Tensor:
    return torch.randn(1, module.conv_in.in_channels, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_copy_of_a_part_leaves_the_model_behind_and_computes_the_same() -> None:
    original, replaced, _ = pair(VAE)
    alone = copy.deepcopy(replaced.decoder)
    images = _images(alone)
    assert_same_images(alone(images), original.decoder(images))
    assert (alone._fused_state.detached, replaced.fused.calls) == (True, 0)
    assert len(pickle.dumps(replaced.decoder.conv_in)) < 2 * len(pickle.dumps(original.decoder.conv_in))


def test_a_part_that_outlives_its_model_computes_the_same() -> None:
    original, replaced, _ = pair(VAE)
    alone, images = replaced.decoder, _images(original.decoder)
    del replaced
    gc.collect()
    assert alone._fused_state.detached
    assert_same_images(alone(images), original.decoder(images))


def test_a_copied_part_put_in_the_parts_place_belongs_to_the_model() -> None:
    original, replaced, inputs = pair(UNET)
    replaced.mid_block = copy.deepcopy(replaced.mid_block)
    assert_close(UNET.run(replaced, inputs), UNET.run(original, inputs), 1e-4)
    assert all(one._fused_state is replaced.fused for one in replaced.modules() if isinstance(one, Swapped))


def test_a_shallow_copy_outlives_the_model_that_it_was_made_from() -> None:
    original, replaced, inputs = pair(UNET)
    twin = copy.copy(replaced)
    del replaced
    gc.collect()
    assert_close(UNET.run(twin, inputs), UNET.run(original, inputs), 1e-4)
    assert twin.fused.calls == 1


def test_a_convolution_that_was_parametrized_later_stays_so_in_a_copy_and_after_a_revert() -> None:
    one = example(UNET)
    original: Any = UNET.build(one)
    model = copy.deepcopy(original)
    handle = replace_module(model)
    for unet in (original, model):
        parametrizations.weight_norm(unet.conv_in)
    inputs, expected = UNET.inputs(one), UNET.run(original, UNET.inputs(one))
    twin = copy.deepcopy(model)
    assert_close(UNET.run(twin, inputs), expected, 1e-4)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model)
    handle.revert()
    for reverted in (model, copy.deepcopy(model)):
        assert torch.equal(UNET.run(reverted, inputs)["sample"], expected["sample"])
        assert not any(name.startswith("_fused") for name in vars(reverted.conv_in))
    assert isinstance(twin.conv_in, Swapped)
    parametrize.remove_parametrizations(model.conv_in, "weight")
    assert type(model.conv_in) is nn.Conv2d


def test_a_class_that_somebody_derived_from_a_swapped_one_outlives_a_revert() -> None:
    original, _, inputs = pair(UNET)
    model = copy.deepcopy(original)
    handle = replace_module(model)

    class Doubled(type(model.conv_in)):  # type: ignore[misc]
        def forward(self, image: Tensor) -> Tensor:
            return 2 * super().forward(image)

    class Again(Doubled):
        pass

    model.conv_in.__class__ = Again
    handle.revert()
    assert type(model.conv_in) is Again
    assert not isinstance(model.conv_in, Swapped)
    original.conv_in.register_forward_hook(lambda module, given, image: 2 * image)
    assert torch.equal(UNET.run(model, inputs)["sample"], UNET.run(original, inputs)["sample"])
