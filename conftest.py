"""Options and surroundings that all tests share."""

from __future__ import annotations

import pytest
import torch

from harness.profiles import PROFILES
from harness.search import quiet


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--profile", choices=sorted(PROFILES), default="regression", help="depth of the regression run")


def pytest_configure(config: pytest.Config) -> None:
    # Tiny models are faster on one thread, and pytest-xdist runs one process a core. Timings use all of them.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet_model_libraries() -> object:
    """Model libraries log about odd configurations, and odd configurations are what cases draw."""
    with quiet():
        yield
