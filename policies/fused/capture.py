"""Capture backends: how a run of a function becomes something that can be replayed.

``CudaGraphBackend`` is the real one. ``EmulatorBackend`` follows the same contract on a CPU, so that every rule about
graphs is tested without a GPU: it records the aten calls of a run and replays them into the same storages. Like a CUDA
graph it knows nothing of Python: a branch, a number, an attribute is what it was while recording. Replacements capture by
CUDA graphs unless they are made inside ``captured_by``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True, eq=False)
class Recording:
    """A captured run. ``replay`` computes it again from what now lies in its inputs, into the memory of ``output``."""

    output: Any
    replay: Callable[[], None]


class CaptureBackend(ABC):
    """What a graph cache needs of a device."""

    name: str
    device_type: str
    """Of the tensors that it captures work on, as torch names it."""
    compiler: str
    """The backend of ``torch.compile`` whose kernels it captures."""

    @classmethod
    @functools.cache
    def made(cls) -> Self:
        """The one of this kind that every replacement in the process captures by."""
        return cls()

    def place(self) -> Hashable:
        """Where a call is made, as far as graphs care: one captured at one place is not replayed at another."""
        return None

    @abstractmethod
    def refuses(self, tensor: Tensor) -> str | None:
        """Why ``tensor`` cannot be an input here, or None."""

    def busy(self) -> bool:
        """True while somebody else is capturing: captures do not nest."""
        return False

    @abstractmethod
    def warm_up(self, run: Callable[[], Any]) -> Any:
        """Run once outside any capture, as the device wants it done before capturing."""

    @abstractmethod
    def capture(self, run: Callable[[], Any]) -> Recording:
        """Record ``run``. What it raises passes through and leaves the backend able to capture again."""


@dataclass(frozen=True, eq=False)
class _Pool:
    """Memory that graphs share, and those that are alive."""

    handle: Any
    graphs: weakref.WeakSet[Any]


class CudaGraphBackend(CaptureBackend):
    """CUDA graphs; ``cuda`` is ``torch.cuda``. All captures made on one stream share a memory pool: they are replayed one after
    the other, and outputs are copied before the next replay."""

    name = "cuda graph"
    device_type = "cuda"
    compiler = "inductor"

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._pools: dict[Hashable, _Pool] = {}
        self._one_at_a_time = threading.Lock()

    def place(self) -> Hashable:
        """The device and its current stream: replays on two streams would overlap, in the same memory."""
        return self._cuda.current_device(), self._cuda.current_stream().cuda_stream

    def refuses(self, tensor: Tensor) -> str | None:
        """Work on another GPU than the current one is done on a stream of that one's, where nobody records it."""
        device = tensor.device
        if device.type != self.device_type:
            return f"a tensor on {device.type}"
        current = self._cuda.current_device()
        return None if device.index == current else f"a tensor on cuda:{device.index}, while cuda:{current} is the current device"

    def busy(self) -> bool:
        return bool(self._cuda.is_current_stream_capturing())

    def warm_up(self, run: Callable[[], Any]) -> Any:
        """On a stream of its own: lazily made handles and workspaces must exist, and the legacy stream is no place for
        them."""
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):
            result = run()
        self._cuda.current_stream().wait_stream(side)
        return result

    def capture(self, run: Callable[[], Any]) -> Recording:
        with self._one_at_a_time:
            return self._capture(run)

    def _capture(self, run: Callable[[], Any]) -> Recording:
        place = self.place()
        pool = self._pools.get(place)
        alive = [] if pool is None else list(pool.graphs)
        if pool is None or not alive:  # the memory of a pool goes with the last of its graphs, and torch takes it for no other
            pool = self._pools[place] = _Pool(self._cuda.graph_pool_handle(), weakref.WeakSet())
        graph = self._cuda.CUDAGraph()
        self._cuda.synchronize()
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):
            try:
                graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
                output = run()
                self._end(graph)
            except BaseException:
                self._abandon(graph, place)
                raise
        self._cuda.current_stream().wait_stream(side)
        pool.graphs.add(graph)
        return Recording(output, graph.replay)

    def _end(self, graph: Any) -> None:
        """Raises ``RuntimeError`` where nothing was recorded: a replay would do nothing, and leave the first call's results."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            graph.capture_end()
        if any("graph is empty" in str(one.message).lower() for one in said):
            raise RuntimeError("nothing was recorded: the work is done on another stream, or on another device")

    def _abandon(self, graph: Any, place: Hashable) -> None:
        """End a capture that came to nothing; the caller has to see why, and not that ending it failed too.

        Where the device itself has refused something, or beginning failed, torch (2.11) leaves its random generator and the
        memory pool as they are while capturing: no random number could be drawn in this process any more. Both are exchanged.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the graph is empty
                graph.capture_end()
        except RuntimeError:
            del self._pools[place]
            generator = self._cuda.default_generators[self._cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())


class EmulatorBackend(CaptureBackend):
    """A CUDA graph's behaviour on a CPU, for tests. It saves no time."""

    name = "emulator"
    device_type = "cpu"
    compiler = "eager"

    def __init__(self) -> None:
        self._recording = False

    def refuses(self, tensor: Tensor) -> str | None:
        return None if tensor.device.type == self.device_type else f"a tensor on {tensor.device.type}"

    def busy(self) -> bool:
        return self._recording

    def warm_up(self, run: Callable[[], Any]) -> Any:
        return run()

    def capture(self, run: Callable[[], Any]) -> Recording:
        recorder = _Recorder()
        self._recording = True
        try:
            with recorder:
                output = run()
        finally:
            self._recording = False
        return Recording(output, recorder.replay)


@dataclass(frozen=True, eq=False)
class _Call:
    """One aten call on the memory that its tensors had, whatever becomes of them. ``results`` pairs the index of an output tensor
    with the tensor whose memory it goes to."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[tuple[int, Tensor], ...]

    def run(self) -> None:
        made = tree_leaves(self.function(*self.args, **self.kwargs))
        for index, result in self.results:
            result.copy_(made[index])


@dataclass(frozen=True, eq=False)
class _Constant:
    """A tensor that Python made of numbers while recording: each replay begins with those numbers again."""

    result: Tensor
    values: Tensor

    def run(self) -> None:
        self.result.copy_(self.values)


class _Recorder(TorchDispatchMode):
    """Views are not replayed: they go on looking at memory that is."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What was compiled before is recorded as it runs."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call | _Constant] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            self.calls.append(_Constant(output, output.clone()))
            return output
        read = {storage_id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = enumerate(tree_leaves(output))
        results = tuple((i, one) for i, one in made if isinstance(one, Tensor) and storage_id(one) not in read)
        if results or func._schema.is_mutable:
            args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self.calls.append(_Call(func, args, kwargs, results))
        return output

    def replay(self) -> None:
        with torch.no_grad():
            for call in self.calls:
                call.run()


def storage_id(tensor: Tensor) -> int:
    """The identity of a tensor's memory, the same for all of its views."""
    return tensor.untyped_storage()._cdata


BY_DEVICE: dict[str, type[CaptureBackend]] = {one.device_type: one for one in (CudaGraphBackend, EmulatorBackend)}
"""What captures work on a device of this type."""
_state: dict[str, type[CaptureBackend]] = {"backend": CudaGraphBackend}


def backend() -> type[CaptureBackend]:
    """What a replacement that is made now captures by."""
    return _state["backend"]


@contextlib.contextmanager
def captured_by(other: type[CaptureBackend]) -> Iterator[None]:
    """Replacements that are made inside capture by ``other``, for as long as they live."""
    before = _state["backend"]
    _state["backend"] = other
    try:
        yield
    finally:
        _state["backend"] = before
