"""The command line, called in this process, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cases import CASES
from harness.cli.app import status
from harness.journal import Journal, Order


def harness(*arguments: object) -> int:
    return status(CASES, [str(one) for one in arguments])


def one_line(captured: pytest.CaptureFixture[str]) -> str:
    lines = captured.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def begun(folder: Path, **asked: Any) -> Path:
    """An unfinished run of which nothing is done yet."""
    order = {
        "id": "1",
        "check": True,
        "created": "2026-01-01T00:00:00+00:00",
        "command": "",
        "profile": "quick",
        "seed": 7,
        "cases": ("opt",),
    }
    Journal.start(folder, Order(**(order | asked))).close()
    return folder
