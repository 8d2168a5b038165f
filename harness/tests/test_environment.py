"""What the fingerprint says of the GPU's driver."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from harness.environment import fingerprint
from harness.timing.tests.fake_gpu import UUID, NVMLError, fake_nvml


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="Fake H100", total_memory=80 * 2**30, major=9, minor=0, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)


def driver() -> str | None:
    accelerator = fingerprint().accelerator
    assert accelerator is not None
    return accelerator.driver


@pytest.mark.usefixtures("gpu")
def test_the_driver_is_the_one_that_nvml_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert driver() == "580.65.06"


@pytest.mark.usefixtures("gpu")
def test_a_driver_that_nvml_does_not_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        raise NVMLError("Not Supported")

    library = fake_nvml()
    library.nvmlSystemGetDriverVersion = refused
    for module in (None, fake_nvml(found=False), library):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        assert driver() is None
