"""Packed weights whose memory somebody else holds too, and calls of several threads."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import policies
from cases.bert import BertCase
from cases.llama import LlamaCase
from cases.opt import OPTCase
from harness.faults.honest import HONEST
from harness.properties.threads import interrupted
from policies.fused import packed as packed_module
from policies.fused.gate import Gate

from .packed_models import output, packed, ready


def test_what_shares_a_weights_memory_keeps_it_from_being_packed() -> None:
    """A state_dict that is alive is written to, and that reaches the layer."""
    case = LlamaCase()
    model, inputs = ready(case)
    before = output(case, model, inputs)
    name = packed(model)[0]
    state = model.state_dict()
    assert torch.allclose(output(case, model, inputs), before)
    assert packed(model) == []
    state[name].mul_(3.0)
    changed = output(case, model, inputs)
    assert not torch.allclose(changed, before)
    del state
    assert torch.allclose(output(case, model, inputs), changed, atol=1e-5)
    assert name in packed(model)


def test_a_graph_of_gradients_keeps_the_weights_that_it_has_saved() -> None:
    case = LlamaCase()
    original = case.build(case.simplest)
    model, inputs = ready(case)
    for one in (original, model):
        with torch.enable_grad():
            total = next(iter(case.run(one, inputs).values())).sum()
        output(case, one, inputs)
        total.backward()
    for mine, its in zip(original.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(its.grad, mine.grad, rtol=1e-3, atol=1e-4)


def in_a_graph(parameter: nn.Parameter) -> Callable[[], Tensor]:
    factor = torch.ones(1, requires_grad=True)
    total = (parameter * factor).sum()
    return lambda: torch.autograd.grad(total, factor)[0]


def in_a_script(parameter: nn.Parameter) -> Callable[[], Tensor]:
    linear = nn.Linear(*reversed(parameter.shape), bias=False)
    linear.weight = parameter
    x = torch.ones(1, parameter.shape[1])
    script = torch.jit.trace(linear, x)
    return lambda: script(x).sum()


def test_a_held_bias_keeps_weights_from_being_joined_and_not_from_being_packed() -> None:
    """Whether it is held still is asked at each call, which must not unpack anything."""
    case = BertCase()
    model = case.build(case.simplest)
    held = model.get_parameter("encoder.layer.0.attention.self.key.bias").detach()
    policies.replace_module(model, plan="packed")
    inputs = case.inputs(case.simplest)
    with mock.patch.object(packed_module.PackedWeight, "release", side_effect=AssertionError("was unpacked")):
        output(case, model, inputs)
        output(case, model, inputs)
    assert "packed, 6 of 6 weights" in repr(model)
    assert "QKV packed" not in repr(model)
    del held
    output(case, model, inputs)
    assert "QKV packed" in repr(model)


@pytest.mark.skipif(not hasattr(Tensor, "_use_count"), reason="this torch does not tell who holds a tensor")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("holding", [in_a_graph, in_a_script])
def test_what_holds_a_parameter_itself_keeps_it_from_being_packed(
    holding: Callable[[nn.Parameter], Callable[[], Tensor]],
) -> None:
    """It has no tensor of its own of that memory, and knows nothing of packed weights."""
    case = LlamaCase()
    model, inputs = ready(case)
    name = packed(model)[0]
    total = holding(model.get_parameter(name))
    expected = model.get_parameter(name).detach().sum()
    output(case, model, inputs)
    assert name not in packed(model)
    torch.testing.assert_close(total().view(()), expected)
    del total
    gc.collect()
    output(case, model, inputs)
    assert name in packed(model)


def calls_on_plain_weights(stops: int) -> bool:
    """Whether calls that need plain weights are right although each is stopped while another thread makes one, before which
    weights would be packed; and those calls, too."""
    model: Any = OPTCase().build(OPTCase().simplest)
    replaced, ids = copy.deepcopy(model), torch.tensor([[1, 2, 3]])
    (plain_sums,) = (one for one in HONEST if one.id == "residual first")

    def call(one: Any) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"states": one(input_ids=ids).last_hidden_state}

    expected, right = call(model)["states"], True
    with plain_sums.inject(lambda one: policies.replace_module(one, plan="packed")) as replacer:
        replacer(replaced)
        layers = list(replaced.decoder.layers)
        for stop in range(stops):
            for one in interrupted(layers, lambda: call(replaced), lambda: call(replaced), random.Random(stop)):
                right &= torch.allclose(one["states"], expected, atol=1e-4)
    return right


def test_a_call_on_plain_weights_is_left_alone_by_a_thread_that_would_pack_them() -> None:
    assert calls_on_plain_weights(12)


def test_without_a_gate_it_would_not_be() -> None:
    @contextlib.contextmanager
    def open_gate(self: Gate, stale: Any, renew: Any) -> Iterator[None]:
        if stale():
            renew()
        yield

    with mock.patch.object(Gate, "inside", open_gate):
        try:
            right = calls_on_plain_weights(12)
        except (RuntimeError, RecursionError):
            right = False
    assert not right
