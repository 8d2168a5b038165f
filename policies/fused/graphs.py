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
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .attributes import AttributeWatch
from .capture import CaptureBackend, storage_id
from .captured_call import CapturedCall, SetsAttributesError, capture_call
from .inspection import NotRepeatable
from .transforms import compiling
from .trees import (
    NotCapturableError,
    Spec,
    clone_leaves,
    fits,
    flatten,
    unflatten,
)

DEFAULT_LIMIT = 8
_MEANWHILE = "another call is being captured"
_NEVER_ALIKE = "calls are seldom of one form twice"
_capturing = threading.Lock()
"""Held by the one call in the process that is being captured: torch notes for all threads whether a dispatch mode is active, and
what two of them note crosswise stays. Nobody waits for it, a form of call may take seconds to compile."""

Key = tuple[Spec, tuple[Any, ...]]
"""What a capture is found by: the description of a call, and what else decides which work it is."""


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
        self._kept: OrderedDict[Key, CapturedCall | str] = OrderedDict()
        self._watch = AttributeWatch(self.watched)
        self._lock = threading.RLock()
        self._running = False
        self._sets_attributes: str | None = None

    def __len__(self) -> int:
        """How many captures are held."""
        return sum(isinstance(one, CapturedCall) for one in self._kept.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of the inputs and outputs that captures hold; what a run needs in between is the backend's."""
        held = [one for one in self._kept.values() if isinstance(one, CapturedCall)]
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

    def _launched(self, key: Key, leaves: list[Tensor]) -> CapturedCall | None:
        """The capture of the last call, replayed with ``leaves``, where it is for this one too. All it reads must be in memory.

        The device is at work while the host looks for what else has changed, which of a model takes longer than to launch
        it. What turns out to be old is left where it is: it lies in the graph's own memory. Caches do not, so they wait.
        """
        last, capture = self._latest()
        if key is not last or not isinstance(capture, CapturedCall) or capture.writes_caches:
            return None
        capture.run(leaves)
        return capture

    def _like_the_last(self, tree: Any, around: tuple[Any, ...]) -> tuple[list[Tensor], Key] | None:
        """The tensors of ``tree`` and its signature, where that is the last call's."""
        key, _ = self._latest()
        leaves: list[Tensor] = []
        return (leaves, key) if key is not None and around == key[1] and fits(tree, key[0], leaves) else None

    def _latest(self) -> tuple[Key | None, CapturedCall | str | None]:
        """The last call's signature and what is kept for it: to look that up by its hash would take longer than all else."""
        return next(reversed(self._kept.items()), (None, None))

    def _for(self, key: Key, leaves: list[Tensor]) -> CapturedCall | str:
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
        reason = "a call while capturing" if self._running or self.backend.busy() else self._sets_attributes
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

    def _make(self, key: Any, leaves: list[Tensor], spec: Spec) -> CapturedCall | str:
        """Capture a signature, or learn why not; either is kept, an exception of the function's own is not."""
        self._running = True
        try:
            made: CapturedCall | str = capture_call(
                self.function,
                self.captured,
                leaves,
                spec,
                weights=list(self._weights()),
                watch=self._watch,
                backend=self.backend,
            )
        except (NotCapturableError, NotRepeatable) as refusal:
            made = str(refusal)
            if isinstance(refusal, SetsAttributesError):
                self._sets_attributes = made
        else:
            self.captures += 1
        finally:
            self._running = False
        self._kept[key] = made
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)
        return made


def _described(tree: Any, around: tuple[Any, ...]) -> tuple[list[Tensor], Key]:
    leaves, spec = flatten(tree)
    return leaves, (spec, around)


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
