"""Settings for the timing tests."""

import gc

import pytest


@pytest.fixture(autouse=True)
def _other_objects_set_aside():
    """Every comparison collects garbage first; with all that was imported and left behind by other tests, which may have undone
    this, that would be most of the suite's time."""
    gc.freeze()
    yield
    gc.unfreeze()
