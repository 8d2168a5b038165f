"""Settings for the timing tests."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_set_aside():
    """Every comparison collects garbage first; with all that torch imports, that would be most of the suite's time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
