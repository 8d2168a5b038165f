"""A GPU that is not there: a stream with its own clock behind ``torch.cuda``'s names, and NVML answers as recorded.

The NVML figures are those of a data-centre GPU under load; error texts are NVML's own.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from types import SimpleNamespace
from weakref import WeakSet

UUID = "3f1c0a52-7b1e-9d0c-54aa-0c2e4b7d9e11"


class FakeCuda:
    """Work is asked for with ``launch(seconds)`` and runs when the stream gets to it; ``log`` holds what was asked, in order."""

    def __init__(self, *, l2_bytes: int = 50 * 2**20) -> None:
        self.log: list[str] = []
        self.stream_seconds = 0.0
        self.allocated = 1000
        self.peak = 1000
        self.pools: list[object] = []
        self.alive: dict[object, WeakSet[FakeGraph]] = {}
        self.refused = False
        self.drawing = True
        self.default_generators = [self]
        self._properties = {"name": "Fake H100", "L2_cache_size": l2_bytes}
        if not l2_bytes:
            del self._properties["L2_cache_size"]
        cuda = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self) -> None:
                cuda.log.append("record")
                self.at = cuda.stream_seconds

            def elapsed_time(self, end: Event) -> float:
                assert cuda.log[-1] == "synchronise", "events are read only after synchronising"
                return (end.at - self.at) * 1e3

        self.Event = Event

    def launch(self, seconds: float, *, memory: int = 0) -> None:
        self.log.append("launch")
        self.stream_seconds += seconds
        self.peak = max(self.peak, self.allocated + memory)

    def _sleep(self, cycles: int) -> None:
        assert cycles > 0
        self.log.append("hold")
        self.stream_seconds += 1e-3

    def allocate(self, size: int) -> SimpleNamespace:
        self.flush_bytes = size

        def zero() -> None:
            self.log.append("flush")
            self.stream_seconds += 1e-3

        return SimpleNamespace(zero_=zero)

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(**self._properties)

    def synchronize(self) -> None:
        self.log.append("synchronise")

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    def Stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.log.append("side waits"))

    def current_stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.log.append("main waits"), cuda_stream=0)

    @contextmanager
    def stream(self, stream):
        self.log.append("on side")
        yield

    def graph_pool_handle(self) -> object:
        return object()

    def CUDAGraph(self) -> FakeGraph:
        return FakeGraph(self)

    def refuse(self) -> None:
        """An operation that cannot be captured."""
        self.refused, self.drawing = True, False
        raise RuntimeError("operation not permitted when stream is capturing")

    def clone_state(self) -> FakeCuda:
        return self

    def graphsafe_set_state(self, state: FakeCuda) -> None:
        self.drawing = True


class FakeGraph:
    """As torch's: the memory of a pool goes with the last graph in it, and cannot be had again. After an operation that the
    device refused, ending raises, and the generator stays in its state."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def capture_begin(self, *, pool: object, capture_error_mode: str) -> None:
        self.cuda.log.append("capture")
        if pool in self.cuda.pools and not self.cuda.alive.get(pool):
            self.cuda.drawing = False
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.begun = len(self.cuda.log)
        self.cuda.pools.append(pool)
        self.cuda.alive.setdefault(pool, WeakSet()).add(self)

    def capture_end(self) -> None:
        if "launch" not in self.cuda.log[self.begun :]:
            warnings.warn("The CUDA Graph is empty. This usually means", stacklevel=1)
        self.cuda.log.append("captured")
        if self.cuda.refused:
            self.cuda.refused = False
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        self.cuda.log.append("replay")


class NVMLError(Exception):
    pass


def fake_nvml(
    *, reasons: int = 0, pids: tuple[int, ...] = (), unsupported: tuple[str, ...] = (), found: bool = True
) -> SimpleNamespace:
    """A stand-in for the module ``pynvml``; functions in ``unsupported`` answer as NVML does then."""

    def answer(name, value):
        def query(*_):
            if name in unsupported:
                raise NVMLError("Not Supported")
            return value

        return query

    def by_uuid(uuid):
        if not found or uuid != f"GPU-{UUID}":
            raise NVMLError("Not Found")
        return "handle"

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        nvmlClocksEventReasonSwPowerCap=0x4,
        nvmlClocksEventReasonHwSlowdown=0x8,
        nvmlClocksEventReasonSyncBoost=0x10,
        nvmlClocksEventReasonSwThermalSlowdown=0x20,
        nvmlClocksEventReasonHwThermalSlowdown=0x40,
        nvmlClocksEventReasonHwPowerBrakeSlowdown=0x80,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlSystemGetDriverVersion=lambda: "580.65.06",
        nvmlDeviceGetClockInfo=answer("nvmlDeviceGetClockInfo", 1755),
        nvmlDeviceGetCurrentClocksEventReasons=answer("nvmlDeviceGetCurrentClocksEventReasons", reasons),
        nvmlDeviceGetComputeRunningProcesses=answer(
            "nvmlDeviceGetComputeRunningProcesses", [SimpleNamespace(pid=pid) for pid in pids]
        ),
    )
