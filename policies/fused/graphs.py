"""Graph capture with a contract: a call through here gives what the function itself would give.

DeepSpeed captured the first call and replayed it for all others, which answered with another prompt's conditioning,
broadcast a smaller batch, or overwrote results that the caller still held (FAULTS F73 to F78). The rules here:

* one capture per description of everything but tensors' values (``trees``), and per ambient state (default dtype,
  TF32 ...);
* at most ``limit`` captures, the least recently used goes first;
* inputs are copied in, nested ones too, and must fit exactly; outputs are copied out; a static cache is written to where it
  is, by captures made for that place;
* captures are dropped where a module that the function uses is no longer what it was: a parameter or buffer exchanged
  or moved, a submodule or attribute set. Updates in place are seen, because the graph reads the same memory;
* what a graph cannot repeat (``inspection``) runs eagerly and is counted, by reason;
* a graph is replayed once before it is kept, and has to give what the call itself has given;
* an exception passes through and leaves nothing behind.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .attributes import AttributeWatch
from .capture import CaptureBackend, Recording, storage_id
from .inspection import NotRepeatable, TrialRun
from .preallocated import Preallocated
from .transforms import compiling
from .trees import (
    NotCapturableError,
    Spec,
    StaticTensor,
    TensorSpec,
    clone_leaves,
    fits,
    flatten,
    preallocated_in,
    unflatten,
)

DEFAULT_LIMIT = 8
_SETS_ATTRIBUTES = "attributes of its module are set by the call"
_MEANWHILE = "another call is being captured"
_NEVER_ALIKE = "calls are seldom of one form twice"
_capturing = threading.Lock()
"""Held by the one call in the process that is being captured: torch notes for all threads whether a dispatch mode is active, and
what two of them note crosswise stays. Nobody waits for it, a form of call may take seconds to compile."""

Key = tuple[Spec, tuple[Any, ...]]
"""What a capture is found by: the description of a call, and what else decides which work it is."""


@dataclass(frozen=True, eq=False)
class Capture:
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


class Graphed:
    """``function`` behind captured graphs.

    ``modules`` are those whose parameters and buffers ``function`` uses, ``watched`` those whose attributes, hooks and
    submodules it uses as well: the same, unless whoever wraps a function looks after that. ``captured`` is what is captured in
    the place of ``function``, if another way of computing the same is faster to replay; what runs eagerly is ``function``.
    ``prepare`` makes ``modules`` ready for ``function`` and says whether it had to change any; ``veto`` may say, of what is
    ready, why this call must run eagerly. Both are asked at each call, after a replay is launched. After ``patience`` captures,
    no more are made while they are replayed less than twice each: calls that are never alike are faster eagerly. ``captures``,
    ``replays`` and ``eager`` (by reason) count what has happened.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        backend: CaptureBackend,
        captured: Callable[..., Any] | None = None,
        modules: tuple[nn.Module, ...] = (),
        watched: tuple[nn.Module, ...] | None = None,
        limit: int = DEFAULT_LIMIT,
        patience: int | None = None,
        prepare: Callable[[], bool] = lambda: False,
        veto: Callable[[], str | None] = lambda: None,
    ) -> None:
        if limit < 1:
            raise ValueError(f"limit is the number of captures kept, at least 1, not {limit}")
        self.function = function
        self.backend = backend
        self.captured = captured or function
        self.modules = modules
        self.watched = modules if watched is None else watched
        self.limit = limit
        self.patience = patience
        self.prepare = prepare
        self.veto = veto
        self.captures = 0
        self.replays = 0
        self.eager: Counter[str] = Counter()
        self._kept: OrderedDict[Key, Capture | str] = OrderedDict()
        self._watch = AttributeWatch(self.watched)
        self._lock = threading.RLock()
        self._running = False
        self._sets_attributes = False

    def __len__(self) -> int:
        """How many captures are held."""
        return sum(isinstance(one, Capture) for one in self._kept.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of the inputs and outputs that captures hold; what a run needs in between is the backend's."""
        held = [one for one in self._kept.values() if isinstance(one, Capture)]
        tensors = [tensor for one in held for tensor in (*(static.tensor for static in one.inputs), *one.leaves)]
        return sum({storage_id(one): one.untyped_storage().nbytes() for one in tensors}.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if compiling():
            return self.function(*args, **kwargs)
        with self._lock:
            try:
                return self._replayed(args, kwargs)
            except NotCapturableError as refusal:
                self.eager[str(refusal)] += 1
                self.prepare()
        return self.function(*args, **kwargs)

    def _replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tree = (args, {name: kwargs[name] for name in sorted(kwargs)})
        around = (*_ambient(), self.backend.place())
        leaves, key = self._like_the_last(tree, around) or _described(tree, around)
        self._check_call(leaves)
        moved = self._watch.moved()
        launched = None if moved else self._launched(key, leaves)
        if self.prepare() or moved or self._watch.changed():
            launched = None
            self._kept.clear()
            self._watch = AttributeWatch(self.watched)
        reason = self.veto() or self._watch.hooked()
        if reason is not None:
            raise NotCapturableError(reason)
        capture = launched or self._for(key, leaves)
        if isinstance(capture, str):
            raise NotCapturableError(capture)
        if capture is not launched:
            capture.run(leaves)
        self.replays += 1
        return unflatten(capture.spec, iter(clone_leaves(capture.leaves)))

    def _launched(self, key: Key, leaves: list[Tensor]) -> Capture | None:
        """The capture of the last call, replayed with ``leaves``, where it is for this one too. All it reads must be in memory.

        The device is at work while the host looks for what else has changed, which of a model takes longer than to launch
        it. What turns out to be old is left where it is: it lies in the graph's own memory. Caches do not, so they wait.
        """
        last, capture = self._latest()
        if key is not last or not isinstance(capture, Capture) or capture.writes_caches:
            return None
        capture.run(leaves)
        return capture

    def _like_the_last(self, tree: Any, around: tuple[Any, ...]) -> tuple[list[Tensor], Key] | None:
        """The tensors of ``tree`` and its signature, where that is the last call's."""
        key, _ = self._latest()
        leaves: list[Tensor] = []
        return (leaves, key) if key is not None and around == key[1] and fits(tree, key[0], leaves) else None

    def _latest(self) -> tuple[Key | None, Capture | str | None]:
        """The last call's signature and what is kept for it: to look that up by its hash would take longer than all else."""
        return next(reversed(self._kept.items()), (None, None))

    def _for(self, key: Key, leaves: list[Tensor]) -> Capture | str:
        """The capture for a signature, made if there is none, or why there is none."""
        last, capture = self._latest()
        if key is last and capture is not None:
            return capture
        capture = self._kept.get(key)
        if capture is None:
            if self.patience is not None and self.captures >= self.patience and self.replays < 2 * self.captures:
                raise NotCapturableError(_NEVER_ALIKE)
            if not _capturing.acquire(blocking=False):
                raise NotCapturableError(_MEANWHILE)
            try:
                capture = self._make(key, leaves, key[0])
            finally:
                _capturing.release()
        self._kept.move_to_end(key)
        return capture

    def _check_call(self, leaves: list[Tensor]) -> None:
        reason = "a call while capturing" if self._running or self.backend.busy() else None
        if reason is None and self._sets_attributes:
            reason = _SETS_ATTRIBUTES
        if reason is None and _get_current_dispatch_mode() is not None:
            reason = "a dispatch mode is active"
        if reason is None and any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            # Autocast keeps casts of weights until its end, and a graph would go on reading them after it.
            reason = "autocast"
        if reason is None and torch.is_grad_enabled() and any(one.requires_grad for one in (*leaves, *self._weights())):
            reason = "gradients are on"
        reason = reason or next(filter(None, map(self.backend.refuses, leaves)), None)
        if reason is not None:
            raise NotCapturableError(reason)

    def _weights(self) -> Iterator[Tensor]:
        for module in self.modules:
            yield from module.parameters()
            yield from module.buffers()

    def _make(self, key: Any, leaves: list[Tensor], spec: Spec) -> Capture | str:
        """Capture a signature, or learn why not; either is kept, an exception of the function's own is not."""
        self._running = True
        try:
            made: Capture | str = self._capture(leaves, spec)
        except (NotCapturableError, NotRepeatable) as refusal:
            made = str(refusal)
        finally:
            self._running = False
        self._kept[key] = made
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)
        return made

    def _capture(self, leaves: list[Tensor], spec: Spec) -> Capture:
        elsewhere = next(filter(None, map(self.backend.refuses, self._weights())), None)
        if elsewhere is not None:
            raise NotCapturableError(elsewhere)
        with _plain_mode():
            inputs = [StaticTensor(TensorSpec.of(leaf)) for leaf in leaves]
            for static, leaf in zip(inputs, leaves, strict=True):
                static.fill(leaf)
            tensors = [static.tensor for static in inputs]
            protected = [*tensors, *self._weights()]
        caches = preallocated_in(spec)
        with _mode_of(caches):
            with _undone(caches), TrialRun(protected):
                expected = self.backend.warm_up(lambda: _run_once(self.function, spec, tensors))
            if self._watch.moved() or self._watch.changed():
                # A replay would not set them again, and the eager call that follows must find them as they were.
                self._watch.restore()
                self._sets_attributes = True
                raise NotCapturableError(_SETS_ATTRIBUTES)
            foreign = [*protected, *(tensor for cache in caches for tensor in cache.tensors)]
            with _undone(caches):
                _check_own(self.backend.warm_up(lambda: _run_once(self.captured, spec, tensors)), foreign)
            try:
                with _undone(caches):
                    recording = self.backend.capture(lambda: _run_once(self.captured, spec, tensors))
            except RuntimeError as problem:
                # It has just run twice: this is about capturing (a library that waits for the device, a stream of its own).
                raise NotCapturableError(f"cannot be captured: {str(problem).partition(chr(10))[0]}") from problem
            outputs, output_spec = _check_own(recording.output, foreign)
            with _undone(caches):
                recording.replay()
            if not _agree(flatten(expected)[0], outputs):
                raise NotCapturableError("a replay gives something else than the call")
        self.captures += 1
        return Capture(inputs, recording, outputs, output_spec, writes_caches=bool(caches))


def _described(tree: Any, around: tuple[Any, ...]) -> tuple[list[Tensor], Key]:
    leaves, spec = flatten(tree)
    return leaves, (spec, around)


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


@contextmanager
def _plain_mode() -> Iterator[None]:
    """Static tensors outlive the call, so they must not be inference tensors."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _ambient() -> tuple[Any, ...]:
    """What else, besides arguments and modules, decides which device work a call is."""
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        *((type(mode), str(getattr(mode, "device", ""))) for mode in _get_current_function_mode_stack()),
    )
