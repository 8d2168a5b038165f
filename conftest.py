"""Options and surroundings that all tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from harness.environment import fingerprint
from harness.profiles import PROFILES
from harness.search import quiet


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--profile", choices=sorted(PROFILES), default="regression", help="depth of the regression run")


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes says more about what else the machine does than about the code.
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")
    # Tiny models are faster on one thread, and pytest-xdist runs one process a core. Timings use all of them.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _garbage_of_its_own() -> Iterator[None]:
    """Whoever looks for garbage looks through what one test has made, and not through a million objects that were imported and
    that other tests have left behind."""
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _quiet_model_libraries() -> object:
    """Model libraries log about odd configurations, and odd configurations are what cases draw."""
    with quiet():
        yield


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """The accelerator is part of a machine's identity: timings of different ones must not be compared."""
    found = fingerprint()
    machine_info["machine_fingerprint"] = found.machine
    machine_info["accelerator"] = found.accelerator.name if found.accelerator else None
    machine_info["torch_threads"] = torch.get_num_threads()
