"""A static cache behind graphs: a step of decoding is replayed, and reads and writes the cache where it is."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import StaticCache

from harness.placed import placed
from harness.plans import by_plan
from harness.registry import CaseEntry
from harness.trial import fused_states, graphs_of
from policies.fused.capture import EmulatorBackend
from policies.plans import CAPTURED

from ..llama import LlamaCase
from .graph_calls import DEVICES
from .table import LAYERED

pytestmark = pytest.mark.usefixtures("no_gradients")

STEPS = 5
PLANS = [plan.value for plan in CAPTURED]
CACHING = [entry for entry in LAYERED if entry.load().static_cache]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def both(entry: CaseEntry, plan: str, device: str) -> tuple[nn.Module, nn.Module]:
    """An original and its replacement by graphs. Decoders, of cases that have encoders too."""
    case = placed(entry.load(), device)
    example = case.simplest.with_value("role", "decoder") if "role" in case.simplest.values else case.simplest
    original = case.build(example)
    model = copy.deepcopy(original)
    with by_plan(plan, device) as replacer:
        replacer(model)
    return original, model


LLAMA = next(entry for entry in CACHING if entry.name == "llama")


def cache_for(model: nn.Module, kind: type[StaticCache] = StaticCache, **kwargs: Any) -> Any:
    return kind(config=model.config, max_cache_len=STEPS + 4, **kwargs)


def prompt(model: nn.Module, cache: Any, first: int) -> Tensor:
    """Outputs (1, 3 + STEPS, D) for three tokens at once and then one by one."""
    device = next(model.parameters()).device
    ids = torch.arange(first, first + 3 + STEPS, device=device)[None]
    pieces = (ids[:, :3], *ids[:, 3:].split(1, dim=1))
    return torch.cat([model(input_ids=one, past_key_values=cache).last_hidden_state for one in pieces], dim=1)


def same(mine: Tensor, its: Tensor) -> bool:
    return torch.allclose(mine, its, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("entry", CACHING, ids=lambda entry: entry.name)
def test_steps_are_replayed_and_the_cache_serves_the_next_prompt(
    entry: CaseEntry, plan: str, device: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    original, model = both(entry, plan, device)
    with mode():
        caches = [cache_for(one) for one in (original, model)]
        for first in (1, 7):
            assert same(*(prompt(one, cache, first) for one, cache in zip((original, model), caches, strict=True)))
            for cache in caches:
                cache.reset()
    (graph,) = graphs_of(model)
    assert (graph.captures, graph.replays) == (2, 2 * STEPS + 1)
    assert dict(graph.eager) == {"a value of class StaticCache": 1}  # which had no tensors yet
    (state,) = fused_states(model)
    assert not state.fallbacks


@pytest.mark.parametrize("plan", PLANS)
def test_prompts_in_turn_keep_to_their_caches(plan: str, device: str) -> None:
    original, model = both(LLAMA, plan, device)
    expected = [prompt(original, cache_for(original), first) for first in (1, 7)]
    caches = [cache_for(model) for _ in expected]
    outputs: list[list[Tensor]] = [[], []]
    for step in range(-1, STEPS):
        for first, cache, kept in zip((1, 7), caches, outputs, strict=True):
            ids = torch.arange(first, first + 3, device=device) if step < 0 else torch.tensor([first + 3 + step], device=device)
            kept.append(model(input_ids=ids[None], past_key_values=cache).last_hidden_state)
    assert all(same(one, torch.cat(other, dim=1)) for one, other in zip(expected, outputs, strict=True))
    assert graphs_of(model)[0].captures == 2


def test_a_graph_keeps_no_cache_alive(device: str) -> None:
    _, model = both(LLAMA, "graphed", device)
    cache = cache_for(model)
    prompt(model, cache, 1)
    layer, keys = weakref.ref(cache.layers[0]), weakref.ref(cache.layers[0].keys)
    del cache
    gc.collect()
    assert graphs_of(model)[0].captures == 1
    assert layer() is None
    if device == "cuda":  # what the emulator records are tensors
        assert keys() is None


def test_a_capture_that_fails_leaves_the_cache_to_the_call_that_is_made_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise OSError("no compiler here")

    monkeypatch.setattr(EmulatorBackend, "compiler", staticmethod(fails))
    original, model = both(LLAMA, "compiled", "cpu")
    assert same(prompt(original, cache_for(original), 1), prompt(model, cache_for(model), 1))
    (graph,) = graphs_of(model)
    assert graph.captures == 0 and graph.eager.total() == 1 + STEPS


class OfSomebodyElse(StaticCache):
    pass


def with_another_update(model: nn.Module) -> Any:
    cache = cache_for(model)
    honest = cache.update
    cache.update = lambda *args, **_: honest(*args)
    return cache


def with_a_list(model: nn.Module) -> Any:
    cache = cache_for(model)
    cache.layers[0].seen = []
    return cache


@pytest.mark.parametrize("make", [lambda model: cache_for(model, OfSomebodyElse), with_another_update, with_a_list])
def test_a_cache_that_may_do_more_than_transformers_does_runs_plain(make: Callable[[nn.Module], Any]) -> None:
    original, model = both(LLAMA, "graphed", "cpu")
    assert same(prompt(original, make(original), 1), prompt(model, make(model), 1))
    (graph,) = graphs_of(model)
    assert graph.captures == 0 and graph.eager.total() == 1 + STEPS


def test_a_cache_that_changes_by_more_than_values_runs_plain_from_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a layer might that counts its tokens in Python."""
    layer = type(cache_for(LlamaCase().build(LlamaCase().simplest)).layers[0])
    honest = layer.update

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.tokens = getattr(self, "tokens", 0) + args[0].shape[-2]
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(layer, "update", counting)
    original, model = both(LLAMA, "graphed", "cpu")
    cache = cache_for(model)
    assert same(prompt(original, cache_for(original), 1), prompt(model, cache, 1))
    assert cache.layers[0].tokens == 3 + STEPS
    assert graphs_of(model)[0].eager["its cache changes by more than values"] == STEPS
