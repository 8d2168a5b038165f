"""What several files of tests need first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .saved import save_in_shards


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a tiny Llama in several files."""
    return save_in_shards(tmp_path)
