"""What a call is made within: another thread's call, a function transform."""

from __future__ import annotations

import random
import threading
import weakref
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, is_in_torch_dispatch_mode

from cases import CASES
from harness.case import Case
from harness.faults.bank import find_faults
from harness.plans import by_plan
from harness.properties import BY_NAME, threads
from harness.properties.threads import interrupted
from harness.search import search
from harness.trial import Handle, Vacuous
from policies import replace_module
from policies.fused import layer
from policies.fused.linear import Projection
from policies.fused.state import FusedState

from .outcomes import outcomes

LLAMA, UNET = (next(entry for entry in CASES if entry.name == name).load() for name in ("llama", "unet"))
USUAL = ("model equality", "call twice", "call order", "changing shapes", "two models", "uninitialised memory")


def test_memory_that_two_threads_share_is_found_by_the_property_of_threads_alone() -> None:
    (fault,) = find_faults(("F64 threads",))
    with fault.inject(replace_module) as faulty:
        found = outcomes(("several threads",), LLAMA, faulty, beside=USUAL)
    assert found == {"several threads": "failed"} | dict.fromkeys(USUAL, "held")


@pytest.mark.parametrize("id", ["F79 processes", "F79 vector"])
@pytest.mark.parametrize("case", [LLAMA, UNET], ids=lambda case: case.name)
def test_memory_that_others_hold_too_is_found_by_its_property_alone(case: Case, id: str) -> None:
    names = ("model equality", "two models", "storages", "state dict", "revert")
    (fault,) = find_faults((id,))
    with fault.inject(replace_module) as faulty:
        found = outcomes(("shared memory",), case, faulty, beside=names)
    assert found == {"shared memory": "failed"} | dict.fromkeys(names, "held")


def test_a_copy_that_the_write_of_another_holder_does_not_reach_is_found() -> None:
    """What is derived anew whenever torch has counted a write is right, but for a write that torch has not seen."""
    weight: Any = Projection.weight
    kept: weakref.WeakKeyDictionary[Projection, tuple[int, Tensor]] = weakref.WeakKeyDictionary()

    def copied(self: Projection) -> Tensor:
        own: Tensor = weight.fget(self)
        if self not in kept or kept[self][0] != own._version:
            kept[self] = own._version, own.clone()
        return kept[self][1]

    names = ("model equality", "call twice")
    with mock.patch.object(Projection, "weight", property(copied)):
        found = outcomes(("shared memory",), LLAMA, replace_module, beside=names)
    assert found == {"shared memory": "failed"} | dict.fromkeys(names, "held")


def test_a_forward_that_only_works_while_its_module_is_replaced_is_found_by_revert() -> None:
    """What has wrapped it calls it afterwards, too."""

    def replacer(model: nn.Module) -> Handle:
        handle = replace_module(model)
        for one in handle.replaced:
            module = model.get_submodule(one.path)
            honest = type(module).forward
            own = {"_run": honest, "forward": lambda self, *args, **kwargs: self._run(*args, **kwargs)}
            module.__class__ = type("Fragile", (type(module),), own)
        return handle

    assert outcomes(("revert", "replaced again"), LLAMA, replacer) == {"revert": "failed", "replaced again": "held"}


def test_a_replacement_that_lets_one_thread_in_after_the_other_is_right() -> None:
    """The stopped call cannot wait for the other, and goes on."""

    def locking(model: nn.Module) -> Handle:
        handle, lock = replace_module(model), threading.RLock()
        for one in handle.replaced:
            locked = model.get_submodule(one.path)
            locked.register_forward_pre_hook(lambda *_: lock.acquire() and None)
            locked.register_forward_hook(lambda *_: lock.release())
        return handle

    with mock.patch.object(threads, "PATIENCE", 0.01):
        found = search(BY_NAME["several threads"], LLAMA, locking, examples=3, seed=1)
    assert found.failure is None and found.examples == 3


def test_what_the_other_thread_raises_is_raised() -> None:
    def second() -> dict[str, Tensor]:
        raise ValueError("the other thread")

    with pytest.raises(ValueError, match="the other thread"):
        interrupted([], lambda: {"x": torch.ones(2) + 1}, second, random.Random(1))


def test_a_mode_of_the_other_thread_ends_before_the_first_s_does() -> None:
    """torch notes for all threads whether one is active, and would note it for good."""
    inside, unset = threading.Event(), threading.Event()

    def second() -> dict[str, Tensor]:
        with TorchDispatchMode():
            inside.set()
            unset.wait(0.1)
            return {}

    def first() -> dict[str, Tensor]:
        torch.ones(2)
        inside.wait(0.1)
        return {}

    with mock.patch.object(threads, "PATIENCE", 0.0):
        interrupted([], first, second, random.Random(1))
    assert not is_in_torch_dispatch_mode(include_infra_modes=True)


def test_layers_that_are_never_called_show_nothing() -> None:
    with pytest.raises(Vacuous, match="no operator ran inside the layers"):
        interrupted([nn.Linear(2, 2)], lambda: {"x": torch.ones(2) + 1}, dict, random.Random(1))


def test_a_tangent_that_a_lower_dtypes_kernel_loses_is_found_by_rounding_alone() -> None:
    (fault,) = find_faults(("F67 forward mode",))
    names = ("gradients", "training step", "function transforms")
    with fault.inject(replace_module) as faulty:
        found = outcomes(("rounding float32",), LLAMA, faulty, beside=names)
    assert found == {"rounding float32": "failed"} | dict.fromkeys(names, "held")


@pytest.mark.parametrize("case", [LLAMA, UNET], ids=lambda case: case.name)
def test_a_tangent_that_gets_lost_is_found_by_function_transforms(case: Any) -> None:
    """A layer or model whose derivatives in forward mode are cut off where it ends."""

    def value(tensor: Tensor) -> Tensor:
        return tensor.detach() if forward_ad._current_level >= 0 else tensor

    def cut(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return value(output)
        return (value(output[0]), *output[1:]) if isinstance(output, tuple) else type(output)(sample=value(output.sample))

    def replacer(model: nn.Module) -> Handle:
        handle = replace_module(model)
        for one in handle.replaced:
            model.get_submodule(one.path).register_forward_hook(cut)
        return handle

    assert outcomes(("gradients", "function transforms"), case, replacer) == {
        "gradients": "held",
        "function transforms": "failed",
    }


def test_other_weights_for_one_call_that_are_ignored_are_found() -> None:
    with mock.patch.object(FusedState, "stale", return_value=False):
        found = outcomes(("function transforms",), LLAMA, replace_module)
    assert found == {"function transforms": "failed"}


def test_parameters_whose_values_a_transform_does_not_reach_are_found() -> None:
    with by_plan("packed") as replacer, mock.patch.object(layer, "release_wrapped"):
        found = outcomes(("function transforms",), LLAMA, replacer)
    assert found == {"function transforms": "failed"}
