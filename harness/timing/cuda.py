"""A CUDA GPU as a device: events for its own time, synchronisation for the caller's, a cold L2 before every call.

Requirements this file must meet:

* Device time is between two events around the call, end-to-end time between two synchronisations.
* Before every timed call the L2 cache is overwritten, outside the timed part, so that repeated calls do not find their
  weights cached as no real model would.
* For device time the stream is held until the host has asked for the whole call. Otherwise the events of a call of small
  kernels would tell how long its launches take: on an H100, half a millisecond for 40 microseconds of kernels.
* NVML is optional; without it clocks and throttling are recorded as unavailable.

torch's and NVML's modules come in as arguments, so that the logic is tested with a recorded fake.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from policies.fused.capture import CudaGraphBackend

from .devices import Call, Clock, Conditions, Device, DeviceUnavailable
from .nvml import GpuReading, Nvml, open_nvml

_L2_UNKNOWN_BYTES = 128 * 2**20
_WARM_UP_BEFORE_CAPTURE = 3
_FASTEST_CLOCK_HERTZ = 3e9
"""Above any GPU's: a slower one is held longer."""
_EVENT_TICK_SECONDS = 0.5e-6
"""Resolution of CUDA events: "around 0.5 microseconds" (CUDA runtime API, cudaEventElapsedTime)."""


class CudaDevice(Device):
    """The current GPU. ``cuda`` is ``torch.cuda``; ``allocate(bytes)`` gives a byte tensor on the GPU; ``nvml`` may be absent."""

    kind = "cuda"
    clocks = ("end_to_end", "device")
    graphs = True

    def __init__(self, *, cuda: Any, allocate: Callable[[int], Any], nvml: Nvml | None) -> None:
        self._cuda = cuda
        self._nvml = nvml
        self._graphs = CudaGraphBackend(cuda)
        properties = cuda.get_device_properties(cuda.current_device())
        self.name = f"cuda:{cuda.current_device()} ({properties.name})"
        l2_bytes = getattr(properties, "L2_cache_size", 0)
        self._flush_buffer = allocate(2 * (l2_bytes or _L2_UNKNOWN_BYTES))
        reading = GpuReading() if nvml is None else nvml.read()
        missing = []
        if not l2_bytes:
            missing.append(f"size of the L2 cache unknown: {2 * _L2_UNKNOWN_BYTES // 2**20} MiB are overwritten between calls")
        if nvml is None:
            missing.append("clock, throttling and other processes: package nvidia-ml-py is not installed")
        self.unavailable = (*missing, *reading.unavailable)

    def synchronise(self) -> None:
        """Wait for the GPU."""
        self._cuda.synchronize()

    def seconds(self, call: Call, calls: int, clock: Clock = "end_to_end") -> float:
        """Mean seconds a call, each with a cold L2; ``device`` by events, ``end_to_end`` from launch to synchronised."""
        return (self._device_seconds if clock == "device" else self._end_to_end_seconds)(call, calls)

    def _device_seconds(self, call: Call, calls: int) -> float:
        events = [(self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)) for _ in range(calls)]
        cycles = self._cycles_to_ask_for(call)
        for begin, end in events:
            self._flush()
            self._cuda._sleep(cycles)
            begin.record()
            call()
            end.record()
        self._cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in events)) / 1e3 / calls

    def _cycles_to_ask_for(self, call: Call) -> int:
        """Cycles of a GPU in the time that the host takes to ask for ``call``, and as many more."""
        self._cuda.synchronize()
        start = time.perf_counter()
        call()
        asking = time.perf_counter() - start
        self._cuda.synchronize()
        return math.ceil(2 * asking * _FASTEST_CLOCK_HERTZ)

    def _end_to_end_seconds(self, call: Call, calls: int) -> float:
        total = 0.0
        for _ in repeat(None, calls):
            self._flush()
            self._cuda.synchronize()
            start = time.perf_counter()
            call()
            self._cuda.synchronize()
            total += time.perf_counter() - start
        return total / calls

    def _flush(self) -> None:
        self._flush_buffer.zero_()

    def captured(self, call: Call) -> Call:
        """Capture ``call`` as a CUDA graph, after a few calls aside, and return its replay."""
        for _ in repeat(None, _WARM_UP_BEFORE_CAPTURE):  # lazy initialisation must not end up in the graph
            self._graphs.warm_up(call)
        recording = self._graphs.capture(call)

        def replay() -> object:
            recording.replay()
            return recording.output

        return replay

    def conditions(self) -> Conditions:
        """What NVML says now."""
        reading = self._nvml.read() if self._nvml else GpuReading()
        return Conditions(
            at=self.now(),
            clock_hertz=reading.clock_hertz,
            throttling=reading.throttling,
            foreign_processes=reading.foreign_processes,
        )

    def peak_bytes(self, call: Call) -> int | None:
        """Most that torch's allocator held during one call, above what it held before."""
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()
        before = self._cuda.memory_allocated()
        call()
        self._cuda.synchronize()
        return int(self._cuda.max_memory_allocated() - before)

    def free_bytes(self) -> int:
        """What the driver has not given to anybody."""
        return int(self._cuda.mem_get_info()[0])

    def tick_seconds(self) -> float:
        """The coarser of the two clocks: CUDA events."""
        return _EVENT_TICK_SECONDS


def open_cuda() -> CudaDevice:
    """The current CUDA device of torch, with NVML where it is installed. Raises ``DeviceUnavailable`` without a GPU."""
    import torch

    if not torch.cuda.is_available():
        without = f"torch {torch.__version__} is built without CUDA"
        raise DeviceUnavailable(f"no CUDA device: {'the driver shows no GPU' if torch.version.cuda else without}")
    return CudaDevice(
        cuda=torch.cuda,
        allocate=lambda size: torch.empty(size, dtype=torch.uint8, device="cuda"),
        nvml=open_nvml(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)),
    )
