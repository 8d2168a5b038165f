"""Which earlier run a report is shown against."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.pages import previous_run
from reports import storage
from reports.record import Run
from reports.tests import synthetic

NOW = synthetic.run("now", created="2026-03-14T04:10:00+00:00")


def shown(tmp_path: Path, **earlier: Run) -> str | None:
    """The id of the run that ``NOW`` is shown against, where each of ``earlier`` lies in the folder of that name."""
    for name, run in (earlier | {"now": NOW}).items():
        storage.write(run, tmp_path / name)
    found = previous_run(NOW, tmp_path / "now")
    return found.id if found is not None else None


def test_a_run_is_shown_against_the_last_that_began_before_it_whatever_its_folder_is_called(tmp_path: Path) -> None:
    assert (
        shown(
            tmp_path,
            z=synthetic.run("first", created="2026-03-12T04:10:00Z"),
            a=synthetic.run("second", created="2026-03-13T23:10:00-04:00"),
            m=synthetic.run("third", created="2026-03-15T04:10:00Z"),
        )
        == "second"
    )


@pytest.mark.parametrize(
    "other",
    [
        {"verdicts": (synthetic.verdict("opt"),), "timings": (synthetic.timing("opt"),)},
        {"environment": synthetic.environment("b07")},
        {"profile": "quick"},
        {"created": "some day"},
    ],
)
def test_a_run_that_it_cannot_be_compared_with_is_passed_over(tmp_path: Path, other: dict[str, object]) -> None:
    first = synthetic.run("first", created="2026-03-12T04:10:00Z")
    second = synthetic.run("second", **{"created": "2026-03-13T04:10:00Z", **other})
    assert shown(tmp_path, first=first, second=second) == "first"


def test_a_run_without_its_like_is_shown_against_nothing(tmp_path: Path) -> None:
    assert shown(tmp_path, other=synthetic.run("other", created="2026-03-12T04:10:00Z", verdicts=(), timings=())) is None
