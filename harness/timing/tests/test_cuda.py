"""The CUDA device's logic, against a fake."""

import gc
import os
from types import SimpleNamespace

import pytest
import torch

from harness.timing.cuda import CudaDevice
from harness.timing.nvml import Nvml
from harness.timing.tests.fake_gpu import UUID, FakeCuda, fake_nvml
from policies.fused.capture import CudaGraphBackend


def _device(cuda, *, nvml=None, **options):
    return CudaDevice(cuda=cuda, allocate=cuda.allocate, nvml=nvml, **options)


def test_device_time_is_between_events_and_leaves_the_cache_flush_out():
    """Flush, hold, event, call, event, for each call; then one synchronisation. A call before tells how long to hold."""
    cuda = FakeCuda()
    seconds = _device(cuda).seconds(lambda: cuda.launch(2e-4), 3, "device")
    assert seconds == pytest.approx(2e-4)
    asked = ["synchronise", "launch", "synchronise"]
    assert cuda.log == asked + ["flush", "hold", "record", "launch", "record"] * 3 + ["synchronise"]
    assert cuda.flush_bytes == 2 * 50 * 2**20


def test_end_to_end_time_is_between_synchronisations_after_the_flush():
    """So neither the flush nor earlier work is charged to the call."""
    cuda = FakeCuda()
    assert _device(cuda).seconds(lambda: cuda.launch(2e-4), 2) > 0
    assert cuda.log == ["flush", "synchronise", "launch", "synchronise"] * 2


def test_a_graph_is_warmed_up_aside_captured_once_and_replayed():
    """What is timed afterwards is the replay."""
    cuda = FakeCuda()
    outputs = iter("abcd")

    def call():
        cuda.launch(1e-4)
        return next(outputs)

    replay = _device(cuda).captured(call)
    aside = ["side waits", "on side", "launch", "main waits"]
    captured = ["synchronise", "side waits", "on side", "capture", "launch", "captured", "main waits"]
    assert cuda.log == [*aside * 3, *captured]
    assert replay() == "d", "what the captured call returned is what a replay fills"
    assert cuda.log[-1] == "replay"


def test_a_capture_that_the_device_refuses_says_why_and_leaves_nothing_behind():
    """Random numbers can be drawn, and the next capture has memory of its own."""
    cuda = FakeCuda()
    device = _device(cuda)
    calls = []

    def call():
        calls.append(None)
        cuda.launch(1e-4)
        if len(calls) == 4:
            cuda.refuse()

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        device.captured(call)
    assert cuda.drawing
    device.captured(call)
    assert cuda.pools[0] is not cuda.pools[1]


def test_a_call_that_fails_while_captured_passes_its_error_on_and_the_next_is_captured():
    cuda = FakeCuda()
    device = _device(cuda)
    with pytest.raises(ZeroDivisionError):
        device.captured(lambda: 1 / ("capture" not in cuda.log))
    assert device.captured(lambda: cuda.launch(1e-4) or "d")() == "d"


def test_graphs_share_memory_with_those_that_are_alive_and_never_with_those_that_are_gone():
    """torch gives up a pool with its last graph."""
    cuda = FakeCuda()
    device = _device(cuda)

    def call():
        cuda.launch(1e-4)

    kept = [device.captured(call) for _ in range(2)]
    assert cuda.pools[0] is cuda.pools[1]
    del kept
    gc.collect()
    device.captured(call)
    assert cuda.pools[2] is not cuda.pools[0]
    assert cuda.drawing


def test_a_graph_of_nothing_is_an_error():
    """The work was done on a stream that nobody records, and a replay would leave old results."""
    with pytest.raises(RuntimeError, match="nothing was recorded: the work is done on another stream, or on another device"):
        _device(FakeCuda()).captured(lambda: None)


def test_a_tensor_on_another_gpu_than_the_current_one_is_no_input_of_a_graph():
    backend = CudaGraphBackend(FakeCuda())
    here, there, host = (SimpleNamespace(device=torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu"))
    assert backend.refuses(here) is None
    assert backend.refuses(there) == "a tensor on cuda:1, while cuda:0 is the current device"
    assert backend.refuses(host) == "a tensor on cpu"


def test_peak_memory_is_what_one_call_held_above_the_level_before():
    """By torch's allocator."""
    cuda = FakeCuda()
    assert _device(cuda).peak_bytes(lambda: cuda.launch(0, memory=4096)) == 4096


def test_conditions_hold_clock_throttling_and_other_processes():
    """The clock in hertz; one that idles or that the user set is no throttling."""
    nvml = Nvml(fake_nvml(reasons=0x4 | 0x40 | 0x1 | 0x2, pids=(os.getpid(), 4242)), UUID)
    device = _device(FakeCuda(), nvml=nvml)
    conditions = device.conditions()
    assert conditions.clock_hertz == 1.755e9
    assert conditions.throttling == ("the power limit is reached", "the hardware's own temperature limit is reached")
    assert conditions.foreign_processes == ("process 4242",)
    assert device.unavailable == ()
    assert nvml.driver() == "580.65.06"


def test_a_single_process_under_another_number_is_taken_to_be_this_one():
    """Containers number processes differently from the driver."""
    assert Nvml(fake_nvml(pids=(99999999,)), UUID).read().foreign_processes == ()
    assert Nvml(fake_nvml(pids=(99999998, 99999999)), UUID).read().foreign_processes == (
        "process 99999998",
        "process 99999999",
    )


def test_each_query_that_is_not_supported_costs_its_own_figure_only():
    """And is named."""
    device = _device(FakeCuda(), nvml=Nvml(fake_nvml(unsupported=("nvmlDeviceGetCurrentClocksEventReasons",)), UUID))
    assert (device.conditions().clock_hertz, device.conditions().throttling) == (1.755e9, ())
    assert device.unavailable == ("NVML throttling: Not Supported",)


@pytest.mark.parametrize(
    ("nvml", "words"),
    [(None, "package nvidia-ml-py is not installed"), (Nvml(fake_nvml(found=False), UUID), "NVML: Not Found")],
)
def test_without_nvml_the_device_still_times_and_says_what_is_missing(nvml, words):
    """NVML is optional."""
    device = _device(FakeCuda(), nvml=nvml)
    assert any(words in missing for missing in device.unavailable)
    assert device.conditions().clock_hertz is None
    assert device.name == "cuda:0 (Fake H100)"


def test_an_unknown_cache_size_is_said_and_a_large_one_assumed():
    """Rather too much than too little is overwritten."""
    cuda = FakeCuda(l2_bytes=0)
    device = _device(cuda)
    assert cuda.flush_bytes == 256 * 2**20
    assert device.unavailable[0] == "size of the L2 cache unknown: 256 MiB are overwritten between calls"
