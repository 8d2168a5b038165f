"""The CPU device and the interface around it."""

import os
import subprocess
import sys

import pytest
import torch

from harness.timing.cpu import CpuDevice
from harness.timing.devices import Conditions, DeviceUnavailable, disturbances
from harness.timing.memory import can_keep_freed
from harness.timing.opening import open_device


def test_threads_are_set_while_pinned_and_given_back():
    """And recorded in the name."""
    before = torch.get_num_threads()
    device = CpuDevice(threads=1)
    assert device.name == "cpu (1 thread)"
    with device.pinned():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not can_keep_freed(), reason="needs an allocator that can be told what to keep")
def test_a_call_that_frees_all_it_made_does_not_ask_the_system_for_it_again():
    """In a process of its own, because the allocator cannot be told to forget."""
    faults = subprocess.run([sys.executable, "-c", _COUNT_FAULTS], capture_output=True, text=True, check=True).stdout
    assert int(faults) < 100  # 2,000 to 10,000 otherwise


_COUNT_FAULTS = """
import resource
import torch
from harness.timing.cpu import CpuDevice

def call():
    return torch.ones(2**19), torch.ones(2**19)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with CpuDevice().pinned():
    for _ in range(3):
        call()
    before = faults()
    for _ in range(10):
        call()
    print(faults() - before)
"""


def test_a_clocked_call_runs_as_often_as_asked():
    """The mean is over exactly those calls."""
    runs = []
    assert CpuDevice().seconds(lambda: runs.append(1), 7) > 0
    assert len(runs) == 7


def test_conditions_count_processor_time_and_name_what_is_missing():
    """Counters grow; what cannot be read is listed."""
    device = CpuDevice()
    before = device.conditions()
    sum(range(10**5))
    after = device.conditions()
    assert after.at > before.at
    assert after.busy_core_seconds >= before.busy_core_seconds > 0
    assert after.own_core_seconds >= before.own_core_seconds > 0
    assert (after.clock_hertz is None) == ("the system reports no clock frequency" in device.unavailable)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's resettable high-water mark")
def test_peak_memory_sees_a_temporary_of_the_call():
    """Also one that is freed before the call returns."""
    size = 64 * 2**20
    peak = CpuDevice().peak_bytes(lambda: torch.ones(size // 4).sum())
    assert 0.95 * size <= peak < 1.5 * size


def test_less_than_one_thread_is_refused():
    """In one line."""
    with pytest.raises(DeviceUnavailable, match="threads must be at least 1, got 0"):
        CpuDevice(threads=0)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    """By name and with the reason."""
    with pytest.raises(DeviceUnavailable, match="device must be 'cpu' or 'cuda', got 'tpu'"):
        open_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="no CUDA device: "):
        open_device("cuda")


def test_disturbances_between_two_snapshots_are_named_with_what_to_do():
    """Load of others, clock, throttling, other processes."""
    before = Conditions(at=0.0, clock_hertz=2.0e9, busy_core_seconds=10.0, own_core_seconds=1.0)
    after = Conditions(
        at=2.0,
        clock_hertz=1.5e9,
        busy_core_seconds=15.0,
        own_core_seconds=3.0,
        throttling=("the power limit is reached",),
        foreign_processes=("process 7",),
    )
    assert disturbances(before, after) == (
        "clock: 2000 MHz before, 1500 MHz after; lock the clock frequency or warm up longer",
        "other load: other processes kept 1.5 cores busy; stop them, or time on cores they do not use",
        "throttling: the power limit is reached; improve cooling, raise the power limit, or lock a lower clock",
        "other processes on the device: process 7; stop them or use another device",
    )


def test_own_work_alone_and_short_intervals_are_no_disturbance():
    """Counters that advance in steps say nothing about an instant."""
    before = Conditions(at=0.0, busy_core_seconds=10.0, own_core_seconds=1.0)
    assert disturbances(before, Conditions(at=2.0, busy_core_seconds=14.1, own_core_seconds=5.0)) == ()
    assert disturbances(before, Conditions(at=0.1, busy_core_seconds=11.0, own_core_seconds=1.0)) == ()
    assert disturbances(before, Conditions(at=2.0)) == ()
