"""One captured call: what a graph of it reads and writes, and how it is made.

The function runs once as it is, watched for what a graph could not repeat, and what is captured once more before it is
recorded. The graph is then replayed and has to give what the function itself has given. Whatever these runs do to a
cache is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attributes import AttributeWatch
from .capture import CaptureBackend, Recording, storage_id
from .inspection import TrialRun
from .preallocated import Preallocated
from .transforms import lasting
from .trees import NotCapturableError, Spec, StaticTensor, TensorSpec, flatten, preallocated_in, unflatten


class SetsAttributesError(NotCapturableError):
    """The call sets attributes of its module, as any other form of it may."""


@dataclass(frozen=True, eq=False)
class CapturedCall:
    """One captured signature."""

    inputs: list[StaticTensor]
    recording: Recording
    leaves: list[Tensor]
    """Of its output: overwritten by the next run."""
    spec: Spec
    """Of its output."""
    writes_caches: bool

    def run(self, values: list[Tensor]) -> None:
        """Replay with ``values`` in the inputs."""
        for static, value in zip(self.inputs, values, strict=True):
            static.fill(value)
        self.recording.replay()


def capture_call(
    function: Callable[..., Any],
    captured: Callable[..., Any],
    leaves: list[Tensor],
    spec: Spec,
    *,
    weights: list[Tensor],
    watch: AttributeWatch,
    backend: CaptureBackend,
) -> CapturedCall:
    """Capture ``captured``, which computes what ``function`` does, for calls described by ``spec``, of which ``leaves`` are one.

    ``watch`` is over the modules whose attributes ``function`` reads, and ``weights`` are what it reads of memory. Raises
    ``NotCapturableError`` or ``NotRepeatable`` where a replay would do something else, and what ``function`` raises.
    """
    elsewhere = next(filter(None, map(backend.refuses, weights)), None)
    if elsewhere is not None:
        raise NotCapturableError(elsewhere)
    with lasting():  # what is static must be no inference tensor
        inputs = [StaticTensor(TensorSpec.of(leaf)) for leaf in leaves]
        for static, leaf in zip(inputs, leaves, strict=True):
            static.fill(leaf)
        tensors = [static.tensor for static in inputs]
        protected = [*tensors, *weights]
    caches = preallocated_in(spec)
    with _mode_of(caches):
        with _undone(caches), TrialRun(protected):
            expected = backend.warm_up(lambda: _run_once(function, spec, tensors))
        if watch.moved() or watch.changed():
            # A replay would not set them again, and the eager call that follows must find them as they were.
            watch.restore()
            raise SetsAttributesError("attributes of its module are set by the call")
        foreign = [*protected, *(tensor for cache in caches for tensor in cache.tensors)]
        with _undone(caches):
            _check_own(backend.warm_up(lambda: _run_once(captured, spec, tensors)), foreign)
        try:
            with _undone(caches):
                recording = backend.capture(lambda: _run_once(captured, spec, tensors))
        except RuntimeError as problem:
            # It has just run twice: this is about capturing (a library that waits for the device, a stream of its own).
            raise NotCapturableError(f"cannot be captured: {str(problem).partition(chr(10))[0]}") from problem
        outputs, output_spec = _check_own(recording.output, foreign)
        with _undone(caches):
            recording.replay()
        if not _agree(flatten(expected)[0], outputs):
            raise NotCapturableError("a replay gives something else than the call")
    return CapturedCall(inputs, recording, outputs, output_spec, writes_caches=bool(caches))


def _run_once(function: Callable[..., Any], spec: Spec, tensors: list[Tensor]) -> Any:
    args, kwargs = given = unflatten(spec, iter(tensors))
    result = function(*args, **kwargs)
    leaves, after = flatten(given)
    if after != spec or any(one is not other for one, other in zip(leaves, tensors, strict=True)):
        raise NotCapturableError("containers among its arguments are changed by the call")
    return result


def _check_own(result: Any, foreign: list[Tensor]) -> tuple[list[Tensor], Spec]:
    """The tensors of a result and its description. Raises ``NotCapturableError`` where one lies in the memory of ``foreign``."""
    leaves, spec = flatten(result)
    memory = {storage_id(one) for one in foreign}
    if any(storage_id(one) in memory for one in leaves):
        raise NotCapturableError("inputs, weights or what a cache holds are returned")
    return leaves, spec


def _agree(expected: list[Tensor], actual: list[Tensor]) -> bool:
    """Whether tensors are the same to half of their dtypes' digits, in the root mean square of those elements that are finite."""
    return len(expected) == len(actual) and all(map(_close, expected, actual))


def _close(expected: Tensor, actual: Tensor) -> bool:
    if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, actual)
    wide, known = expected.double(), expected.isfinite()
    error = torch.where(known, actual.double() - wide, 0.0).square().sum()
    return bool(error <= torch.finfo(expected.dtype).eps * torch.where(known, wide, 0.0).square().sum())


@contextmanager
def _undone(caches: list[Preallocated]) -> Iterator[None]:
    """Runs that come before the one that counts leave caches as they were. Raises ``NotCapturableError`` where they change by
    more than tensors' values, which a replay would not repeat."""
    with ExitStack() as stack:
        for cache in caches:
            stack.enter_context(cache.undone())
        yield
        if any(cache.changed() for cache in caches):
            raise NotCapturableError("its cache changes by more than values")


@contextmanager
def _mode_of(caches: list[Preallocated]) -> Iterator[None]:
    """What was made in inference mode can be written to in no other."""
    with torch.inference_mode(any(tensor.is_inference() for cache in caches for tensor in cache.tensors)), torch.no_grad():
        yield
