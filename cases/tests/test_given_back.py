"""What a replacement has joined or laid out anew is given back, and nothing that is gone is kept, whatever happens to a model."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases.gpt2 import GPT2Case
from cases.llama import LlamaCase
from harness.case import Case
from policies.fused import onednn
from policies.fused.capture import EmulatorBackend, captured_by
from policies.replace import replace_module

from .diffusion_pairs import CASES, UNET, VAE, example
from .models import model_of

pytestmark = pytest.mark.usefixtures("no_gradients")
DIFFUSION = pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)


class Around(nn.Module):
    """An adapter around a linear."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        return result


def own_memory(model: nn.Module) -> bool:
    """Whether each parameter fills a storage of its own, in order."""
    return all(one.untyped_storage().nbytes() == one.nbytes and one.is_contiguous() for one in model.parameters())


def called(case: Case, model: nn.Module) -> dict[str, Tensor]:
    return case.run(model, case.inputs(case.simplest))


def moved_to_where_it_is(case: Case, model: nn.Module) -> None:
    model.to("cpu")


def wrapped_and_moved(case: Case, model: nn.Module) -> None:
    for path in ("q_proj", "to_q"):
        for one in [one for one in model.modules() if hasattr(one, path)]:
            setattr(one, path, Around(getattr(one, path)))
    model.to("cpu")


def wrapped(case: Case, model: nn.Module) -> None:
    for path in ("q_proj", "to_q", "c_attn"):
        for one in [one for one in model.modules() if hasattr(one, path)]:
            setattr(one, path, Around(getattr(one, path)))
    called(case, model)


def called_with_other_weights(case: Case, model: nn.Module) -> None:
    outer = nn.Module()
    outer.model = model
    outer.forward = lambda: called(case, model)
    torch.func.functional_call(outer, {name: one.clone() for name, one in outer.named_parameters()})


@pytest.mark.parametrize("between", [moved_to_where_it_is, wrapped_and_moved, wrapped, called_with_other_weights])
@pytest.mark.parametrize("case", [UNET, LlamaCase()], ids=lambda one: one.name)
def test_every_parameter_fills_a_storage_of_its_own_after_a_revert(
    case: Case, between: Callable[[Case, nn.Module], None]
) -> None:
    model = case.build(case.simplest)
    before = {name: one.clone() for name, one in model.named_parameters()}
    handle = replace_module(model)
    called(case, model)
    assert not own_memory(model)
    between(case, model)
    handle.revert()
    assert own_memory(model)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before.values(), strict=True))


def test_a_vae_that_was_moved_to_where_it_is_has_its_storages_back_after_a_revert() -> None:
    model = VAE.build(VAE.simplest)
    handle = replace_module(model)
    called(VAE, model)
    model.to("cpu")
    handle.revert()
    assert own_memory(model)


def test_a_weight_that_an_adapter_took_lies_as_it_did_after_a_revert(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has another name then."""
    monkeypatch.setattr(onednn, "wants_rows", lambda weight: True)
    case = GPT2Case()
    model = model_of(case)
    handle = replace_module(model, plan="onednn")
    assert not own_memory(model)
    wrapped(case, model)
    handle.revert()
    assert own_memory(model)


def test_a_convolution_that_was_taken_out_lies_as_it_did_after_a_revert() -> None:
    model: Any = UNET.build(UNET.simplest)
    handle = replace_module(model)
    called(UNET, model)
    out, model.conv_in = model.conv_in, copy.deepcopy(model.conv_in)
    handle.revert()
    assert type(out) is nn.Conv2d and own_memory(out)


def test_a_layer_that_came_to_be_refused_keeps_none_of_the_weights_that_it_had() -> None:
    """As who quantises a model after it was replaced wants to have their memory."""
    case = LlamaCase()
    model = case.build(case.simplest)
    replace_module(model)
    called(case, model)
    held = [weakref.ref(one.weight) for one in model.modules() if type(one) is nn.Linear]
    for parent in list(model.modules()):
        for name, one in parent.named_children():
            if type(one) is nn.Linear:
                setattr(parent, name, Around(nn.Linear(one.in_features, one.out_features, bias=one.bias is not None)))
    one = called(case, model)
    gc.collect()
    assert one and held and not any(weight() is not None for weight in held)


@DIFFUSION
def test_a_replaced_model_that_nobody_holds_is_gone_without_a_collection(case: Case) -> None:
    model = case.build(case.simplest)
    held = [weakref.ref(one) for one in model.parameters()]
    replace_module(model)
    called(case, model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert not any(one() is not None for one in held)
    finally:
        gc.enable()


def test_weights_that_are_on_a_device_for_a_call_alone_are_not_kept_there_joined() -> None:
    """As diffusers' group offloading with a stream has them: ``parameter.data`` is the host's again after each block."""
    model: Any = UNET.build(UNET.simplest)
    expected = called(UNET, copy.deepcopy(model))
    replace_module(model)
    parameters = list(model.parameters())
    for block in (*model.down_blocks, model.mid_block, *model.up_blocks):
        inside = list(block.parameters())
        host = [one.data for one in inside]

        def bring(*_: Any, inside: list[Any] = inside, host: list[Tensor] = host) -> None:
            for one, data in zip(inside, host, strict=True):
                one.data = data.clone()

        def take(*_: Any, inside: list[Any] = inside, host: list[Tensor] = host) -> None:
            for one, data in zip(inside, host, strict=True):
                one.data = data

        block.register_forward_pre_hook(bring)
        block.register_forward_hook(take)
    for _ in range(3):
        result = called(UNET, model)
    assert all(torch.allclose(result[name], one, atol=1e-4) for name, one in expected.items())
    assert not [one for one in model.modules() if getattr(one, "_fused_packed", None) is not None]
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))


def test_captured_graphs_of_a_unet_go_when_it_is_moved() -> None:
    with captured_by(EmulatorBackend):
        model: Any = UNET.build(UNET.simplest)
        replace_module(model)
        for _ in range(2):
            called(UNET, model)
        assert model.fused.graphs
        model.to("meta")
        assert not model.fused.graphs


def test_a_unet_from_which_a_hook_was_removed_is_replaced() -> None:
    """diffusers leaves the class's own forward, bound, on what it had hooked."""
    from diffusers.hooks import HookRegistry, ModelHook

    case = UNET
    model: Any = case.build(example(case))
    for part in (model, model.get_submodule("conv_in")):
        registry = HookRegistry.check_if_exists_or_initialize(part)
        registry.register_hook(ModelHook(), "mine")
        registry.remove_hook("mine")
    assert "forward" in vars(model)
    expected = called(case, copy.deepcopy(model))
    assert len(replace_module(model).replaced) == 1
    result = called(case, model)
    assert model.fused.calls == 1 and not model.fused.fallbacks
    assert all(torch.allclose(result[name], one, atol=1e-4) for name, one in expected.items())


def test_a_weight_that_a_layer_has_twice_is_packed_once() -> None:
    case = LlamaCase()
    model = case.build(case.simplest)
    for one in model.modules():
        if hasattr(one, "gate_proj"):
            one.up_proj.weight = one.gate_proj.weight
    replace_module(model, plan="packed")
    called(case, model)
    layer: Any = next(one for one in model.modules() if hasattr(one, "fused"))
    core = layer.fused.core
    for _ in range(3):
        called(case, model)
    assert layer.fused.core is core
