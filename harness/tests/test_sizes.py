"""Sizes of real models: what goes wrong at them alone is found by the property that asks about them, and nowhere else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from cases import CASES
from harness.case import Case, Example
from harness.check import check_property
from harness.exact import exact_mode
from harness.faults.fault import Fault
from harness.faults.sizes import LARGEST_SIZES, PUBLISHED_SIZES, SIZES
from harness.properties import BY_NAME
from harness.properties.sizes import BLOCKS, KERNEL_THREADS, LENGTHS, ROWS, large_trials, largest_trials, long_trial, size_of
from harness.search import quiet
from harness.trial import Trial
from policies import replace_module

from .outcomes import MANY, outcomes
from .tiny import around

LLAMA = next(entry for entry in CASES if entry.name == "llama").load()
USUAL = ("layer equality", "model equality", "cache", "changing shapes", "long sequences")


def some_trial(case: Case, chosen: random.Random) -> Trial:
    values = {axis.name: chosen.choice(axis.values) for axis in case.axes}
    return Trial(case, Example(values, chosen.randrange(2**16)), replace_module)


@pytest.mark.parametrize("fault", SIZES, ids=lambda fault: fault.id)
def test_what_goes_wrong_in_large_layers_alone_is_found_there_and_nowhere_else(fault: Fault) -> None:
    with fault.inject(replace_module) as faulty:
        found = outcomes(("large layers",), LLAMA, faulty, beside=USUAL)
    assert found == {"large layers": "failed"} | dict.fromkeys(USUAL, "held")


@pytest.mark.parametrize("fault", PUBLISHED_SIZES, ids=lambda fault: fault.id)
def test_what_goes_wrong_in_layers_of_published_sizes_with_long_contexts_is_found_there(fault: Fault) -> None:
    with fault.inject(replace_module) as faulty:
        found = outcomes(fault.expects, LLAMA, faulty, beside=USUAL)
    assert found == dict.fromkeys(fault.expects, "failed") | dict.fromkeys(USUAL, "held")


@pytest.mark.parametrize("fault", LARGEST_SIZES, ids=lambda fault: fault.id)
def test_what_goes_wrong_in_the_largest_sizes_alone_is_found_there_and_nowhere_else(fault: Fault) -> None:
    with fault.inject(replace_module) as faulty:
        found = outcomes(fault.expects, LLAMA, faulty, beside=("large layers", *USUAL))
    assert found == dict.fromkeys(fault.expects, "failed") | dict.fromkeys(("large layers", *USUAL), "held")


def test_a_failure_says_at_which_sizes() -> None:
    with SIZES[0].inject(replace_module) as faulty:
        verdict = check_property(
            BY_NAME["large layers"], LLAMA, profile=MANY, seed=1, policy="", replacer=faulty, explain=False
        ).verdict
    assert "head_size=" in verdict.reason and "batch=" in verdict.reason


def test_a_long_call_is_judged_by_what_layers_give_whose_scale_the_models_last_norm_hides() -> None:
    def scaled(own: Any, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(hidden, *args, **kwargs)
        return output * 1.001 if hidden.shape[1] > 20 else output

    verdict = check_property(
        BY_NAME["long sequences"], LLAMA, profile=MANY, seed=1, policy="", replacer=around(scaled), explain=False
    ).verdict
    assert "on the original's input: relative error 1.0e-03" in verdict.reason


def test_kernels_that_share_a_long_call_wrongly_among_many_threads_are_noticed() -> None:
    def shared(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        return output * 1.001 if torch.get_num_threads() == KERNEL_THREADS > 4 else output

    found = outcomes(("layer equality", "two thousand tokens"), LLAMA, around(shared))
    assert found == {"layer equality": "held", "two thousand tokens": "failed"}


@pytest.mark.parametrize("name", [entry.name for entry in CASES])
def test_every_large_value_of_a_case_can_be_built_and_called(name: str) -> None:
    case, chosen = next(entry for entry in CASES if entry.name == name).load(), random.Random(name)
    with quiet(), case.surroundings(), exact_mode():
        for _ in range(3):
            for trial in large_trials(some_trial(case, chosen)):
                large = {axis.name: axis.large for axis in case.axes if axis.large}
                if trial.example.values.get("tokens") == BLOCKS:
                    large["batch"] = (ROWS,)
                assert all(trial.example[name] in values for name, values in large.items()), size_of(trial)


@pytest.mark.parametrize("name", [entry.name for entry in CASES])
def test_every_largest_size_of_a_case_can_be_built_and_called(name: str) -> None:
    case, chosen = next(entry for entry in CASES if entry.name == name).load(), random.Random(name)
    with quiet(), case.surroundings(), exact_mode():
        reached = {axis.name for axis, _ in largest_trials(some_trial(case, chosen))}
    assert reached == {axis.name for axis in case.axes if axis.largest}


def test_the_same_configuration_with_other_numbers_is_of_the_same_size() -> None:
    with quiet(), exact_mode():
        trial = some_trial(LLAMA, random.Random(3))
        other = trial.on(Example(trial.example.values, trial.example.seed + 1))
        sizes, others = ([one.example.values for one in large_trials(each)] for each in (trial, other))
        assert sizes == others and sizes[0] != sizes[1]
        assert long_trial(trial).example["tokens"] == long_trial(other).example["tokens"] in LENGTHS
