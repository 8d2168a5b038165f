"""Each property holds of the real replacement and is broken by a replacer that is wrong in the way it looks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from harness.case import Example
from harness.check import check_property
from harness.faults.exam import LEAST_SHARE
from harness.hf.case import TransformersCase
from harness.numerics import EXACT_TOLERANCE
from harness.profiles import depth
from harness.properties import BY_NAME, PROPERTIES, Property
from harness.properties.rounding import ROUNDING
from harness.trial import Vacuous

from . import tiny
from .asking import CASE, check, examples, first_failure
from .wrong import caches, inputs, memories, numbers, replacing, sizes, training, weights

WRONG: dict[str, Callable[[nn.Module], Any]] = {
    "contract": tiny.edited(replacing.loses_attribute),
    "layer equality": tiny.around(numbers.slightly_off),
    "model equality": tiny.around(numbers.slightly_off),
    "call forms": tiny.around(inputs.names_only),
    "outputs asked for": tiny.around(caches.spoils_cache),
    "parameter accounting": tiny.edited(weights.stale_copy),
    "cache": tiny.around(caches.spoils_cache),
    "edited cache": tiny.around(caches.own_cache),
    "static cache": tiny.around(caches.dynamic_cache_only),
    "fresh cache": tiny.around(caches.own_cache),
    "cache of another class": tiny.around(caches.knows_its_caches),
    "each length": tiny.around(sizes.one_length),
    "long sequences": tiny.around(sizes.whole_blocks),
    "published layers": tiny.around(sizes.one_split),
    "two thousand tokens": tiny.around(sizes.bounded_table),
    "far past": tiny.around(sizes.bounded_cache),
    "many rows": tiny.around(sizes.one_grid),
    "many layers": tiny.around(sizes.four_slots),
    "large layers": tiny.around(sizes.whole_rows),
    "largest sizes": tiny.around(sizes.bounded_batch),
    "batch rows": tiny.around(numbers.leaks_rows),
    "padding": tiny.around(numbers.leaks_tokens),
    "causality": tiny.around(numbers.leaks_tokens),
    "call twice": tiny.around(memories.drifts),
    "changing shapes": tiny.around(sizes.sized_by_first_call),
    "call order": tiny.around(memories.remembers_first_call),
    "after an error": tiny.around(memories.begins_and_ends),
    "two models": tiny.around(memories.counts_models),
    "hands off": tiny.around(weights.writes_weights),
    "uninitialised memory": tiny.around(numbers.reads_new_memory),
    "gradients": tiny.around(training.cuts_gradients),
    "results": tiny.around(training.gives_a_view),
    "backward memory": tiny.around(training.keeps_its_output),
    "training step": tiny.edited(weights.stale_copy),
    "torch.compile": tiny.edited(weights.stale_copy),
    "revert": replacing.reverts_nothing,
    "replaced again": replacing.counts_twice,
    "deep copy": tiny.edited(replacing.unpicklable),
    "pickle": tiny.edited(replacing.unpicklable),
    "state dict": tiny.edited(weights.stale_copy),
    "dtype moves": tiny.around(numbers.single_precision),
    "shared weights": tiny.edited(weights.unties),
    "storages": tiny.edited(weights.keeps_a_copy),
    "flat memory": tiny.around(memories.keeps_each_output),
    "many calls": tiny.around(memories.wears_out),
    "refusal": replacing.counts_twice,
}
BY_MONKEYPATCH = {"hooks", "settings", "in float32", "in bfloat16", "in float16"}


def several(prop: Property) -> int:
    return 1 if prop.once or prop.share < LEAST_SHARE else 6


@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: prop.name)
def test_holds_of_the_real_replacement(prop: Property) -> None:
    for example in examples(several(prop)):
        trial = check(prop, example)
        assert trial.evidence.replaced >= 1 or trial.evidence.refusals


@pytest.mark.parametrize("name", sorted(WRONG))
def test_is_broken_by_a_wrong_replacement(name: str) -> None:
    problem = first_failure(BY_NAME[name], WRONG[name], count=20)
    assert problem is not None
    assert not isinstance(problem, Vacuous)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_is_not_broken_by_how_wrong_replacements_are_put_in(name: str) -> None:
    assert first_failure(BY_NAME[name], tiny.around(numbers.unchanged), count=min(2, several(BY_NAME[name]))) is None


def test_every_property_is_shown_to_bite() -> None:
    # shown in test_rounding.py, test_diffusion_graphs.py and test_around.py
    around = {"several threads", "function transforms", "shared memory"}
    elsewhere = {prop.name for prop in ROUNDING} | {"captured graphs"} | around
    assert {prop.name for prop in PROPERTIES} == WRONG.keys() | BY_MONKEYPATCH | elsewhere


def test_the_example_that_fails_counts_in_what_the_verdict_says_of_errors_and_layers() -> None:
    verdict = check_property(
        BY_NAME["model equality"],
        CASE,
        profile=depth("quick"),
        seed=0,
        policy="",
        replacer=tiny.around(numbers.slightly_off),
        explain=False,
    ).verdict
    assert (verdict.outcome, verdict.examples) == ("failed", 1)
    assert verdict.worst_error is not None
    assert verdict.worst_error > EXACT_TOLERANCE
    assert verdict.layers_replaced > 0


class Limited(tiny.TinyLlama):
    """Its original raises ``error`` when it is given more than a hundred rows."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        def limited(module: nn.Module, args: Any, kwargs: Any) -> None:
            if len(kwargs["input_ids"]) > 100:
                raise self.error

        model = super().build(example, **overrides)
        model.register_forward_pre_hook(limited, with_kwargs=True)
        return model


def verdict_on(name: str, case: TransformersCase) -> tuple[str, str]:
    found = check_property(BY_NAME[name], case, profile=depth("quick"), seed=0, policy="").verdict
    return found.outcome, found.reason


def test_what_an_original_cannot_do_is_said_and_not_asked() -> None:
    outcome, reason = verdict_on("many rows", Limited(IndexError("too many rows")))
    assert outcome == "held"
    assert reason == "not asked: layers=1, batch=65536, tokens=2 (the original raised IndexError: too many rows)"


def test_an_original_that_runs_out_of_memory_is_an_error_and_no_reason_to_ask_less() -> None:
    outcome, reason = verdict_on("many rows", Limited(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    assert outcome == "error" and "can't allocate memory" in reason


def test_what_no_original_can_do_is_not_judged() -> None:
    """A hook that is a local function cannot be pickled."""
    assert verdict_on("pickle", Limited(IndexError())) == (
        "unavailable",
        "the original cannot be pickled: Can't pickle local object 'Limited.build.<locals>.limited'",
    )


def test_statements_are_single_sentences() -> None:
    for prop in PROPERTIES:
        assert prop.statement.endswith(".")
        assert ". " not in prop.statement, prop.name
