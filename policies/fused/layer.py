"""The replacement of a Transformer layer, in place.

A layer is replaced by changing its class to a subclass of its own class whose ``forward`` is fused. Everything a good
citizen must keep is thereby kept without effort: identity, parameter names, ties, hooks, ``isinstance``, the attributes
that parents read, ``state_dict``; and the original computation is one ``super().forward`` away. PyTorch itself uses the
technique for parametrisations and FSDP2.

What was derived from the layer (its anatomy, packed weights) is a cache, and apart (``state``).

A call that the fused path does not cover (training, a function transform, attention weights asked for, hooks on inner
modules, an argument nobody knows) runs the original's own forward and is counted, by reason, in ``fallbacks``.
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..anatomy import SplitQKV
from ..calls import Returns
from ..plans import CAPTURED, Plan, PlanUnavailable, settle
from ..structure import patched
from ..swap import Swap
from .arguments import Arguments, read_arguments
from .capture import CaptureBackend, CudaGraphBackend, backend
from .linear import by_columns, could_pack
from .packed import release_all, release_wrapped
from .preallocated import preallocated
from .returned import form_of, in_form
from .saved import SavedApart
from .state import FusedState
from .transforms import compiling, exporting, not_plain, tracing
from .watch import inner_hooks

if TYPE_CHECKING:
    from ..base import AnatomyPolicy

_MAKING = threading.RLock()
"""Two threads may be the first to call a layer."""


class FusedLayer(SavedApart):
    """Mixin that stands before an original layer class."""

    _fused_policy: ClassVar[type[AnatomyPolicy]]
    _fused_original: ClassVar[type[nn.Module]]
    _fused_parameters: ClassVar[tuple[str, ...]]
    _fused_returns: ClassVar[Returns]
    _fused_plan: Plan = Plan.PLAIN
    _fused_backend: type[CaptureBackend] = CudaGraphBackend
    _fused_shared: frozenset[str] = frozenset()
    _fused_by_rows: frozenset[str] = frozenset()
    _fused_state: FusedState | None = None

    @property
    def fused(self) -> FusedState:
        """The state derived from this layer; made when first needed (a copy starts without one, or with another layer's, where
        attributes were copied one by one, as for a replica)."""
        if not self._fused_looked_at:
            self._fused_make_state()
        assert self._fused_state is not None
        return self._fused_state

    @property
    def _fused_looked_at(self) -> bool:
        """Whether there is a state, of this very layer."""
        return self._fused_state is not None and self._fused_state.owner() is self

    @torch.compiler.disable
    def _fused_make_state(self) -> None:
        with _MAKING:
            if not self._fused_looked_at:
                self._fused_state = FusedState(self, self._fused_policy, self._fused_plan, shared=self._fused_shared)

    @torch.compiler.disable(reason="weights of plan packed are no tensors; for fullgraph replace with plan='auto'")
    def _fused_untraced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._fused_forward(args, kwargs)

    def _fused_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        compiled = compiling()
        if self._fused_plan is Plan.PACKED:
            if exporting():
                raise PlanUnavailable("plan packed cannot be exported: its weights are no tensors; replace with plan='auto'")
            if compiled:
                return self._fused_untraced(args, kwargs)
            if tracing():
                raise PlanUnavailable("plan packed cannot be traced: its weights are no tensors; replace with plan='auto'")
            self._fused_no_training()
        strange = not_plain(args[0] if args else next(iter(kwargs.values()), None))
        if strange is not None:
            return self._fused_strange(strange, args, kwargs)
        if compiled and not self._fused_looked_at:
            return super().forward(*args, **kwargs)  # nobody can look at values that are being traced
        state = self.fused
        if self._fused_plan is Plan.PACKED:
            with state.gate.inside(functools.partial(state.stale, self), functools.partial(state.bind, self)):
                return self._fused_call(state, args, kwargs, compiled=False)
        if state.edited(self) if compiled else state.stale(self):
            if exporting() and state.still_read(self):
                state = state.of_export(self)
            elif compiled:
                return super().forward(*args, **kwargs)
            else:
                state.bind(self)
        return self._fused_call(state, args, kwargs, compiled=compiled)

    def _fused_strange(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The original's call, of a layer that is not even looked at: parameters may be wrappers of others, for this call
        alone."""
        state = self._fused_state
        if state is None:
            return super().forward(*args, **kwargs)
        state.fallbacks[reason] += 1
        with state.gate.inside(lambda: False, lambda: None):
            release_wrapped(self)
            return super().forward(*args, **kwargs)

    def _fused_call(self, state: FusedState, args: tuple[Any, ...], kwargs: dict[str, Any], *, compiled: bool) -> Any:
        core = state.core
        if core is None:
            if not compiled:
                state.fallbacks[state.refusal or ""] += 1
            return super().forward(*args, **kwargs)
        arguments = read_arguments(state.policy.call, core, self._fused_parameters, args, kwargs)
        reason = self._why_not(state, arguments)
        if reason is not None:
            if not compiled:
                state.fallbacks[reason] += 1
            return super().forward(*args, **kwargs)
        if not compiled:
            state.calls += 1
        core.emit = state.emit
        # What is compiled asks no more where a parameter's values are, which are given another place by ``parameter.data = ...``.
        arguments.call.apart = compiled
        graph = None if compiled else state.graph
        if graph is not None and arguments.call.cache is not None:
            index = core.attention.attention.cache_index
            arguments.call.cache = preallocated(arguments.call.cache, index) or arguments.call.cache
        hidden = (core if graph is None else graph)(arguments.hidden, arguments.call, arguments.encoder)
        if self._fused_policy.call.sequence_first:
            hidden = hidden.transpose(0, 1).contiguous()
        return in_form(self._fused_returns, hidden, arguments.context)

    def _why_not(self, state: FusedState, arguments: Arguments) -> str | None:
        if self.training or any(module.training for module in state.watch.modules):
            return "training mode"
        if arguments.unknown is not None:
            return arguments.unknown
        if not self._fused_policy.call.autocast and torch.is_autocast_enabled(arguments.hidden.device.type):
            return "autocast"
        return inner_hooks(state.watch.modules)

    def _fused_no_training(self) -> None:
        """Raise where this call would be a step of training."""
        if self.training and torch.is_grad_enabled() and any(one.requires_grad for one in self.parameters()):
            raise PlanUnavailable(
                f"plan packed is for inference, and {self._fused_original.__name__} was called in training mode with "
                "gradients; call eval(), use torch.no_grad(), or replace with plan='plain'"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moving a layer gives each parameter a storage of its own, but where it is there already; a packed weight left behind
        # would be a second copy.
        if self._fused_state is not None:
            release_all(self)
            self._fused_state.give_back(self)
            self._fused_state = None
        moved = super()._apply(fn, recurse)
        self._fused_look()
        return moved

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fused_look()

    def _fused_look(self) -> None:
        """Make the state now, where there are values to look at: a compiler, which may be the next to come, cannot. Weights are
        packed when they are first needed."""
        there = all(type(one) is nn.Parameter and not one.is_meta for one in self.parameters())
        if there and self._fused_plan is not Plan.PACKED:
            self._fused_make_state()

    def extra_repr(self) -> str:
        return f"replaced by {self._fused_policy.__name__}, plan: {self.fused.plan}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fused_state"}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self._fused_original, self._fused_policy), self.__getstate__()


class LayerSwap(Swap):
    """Changes a layer's class to its fused subclass, and back."""

    def __init__(self, layer: nn.Module, policy: type[AnatomyPolicy]) -> None:
        policy(layer)
        self.layer = layer
        self.original = type(layer)
        self.policy = policy

    def layout(self) -> tuple[tuple[str, ...], ...] | None:
        if self.execution is Plan.PACKED:
            return None
        read = self.policy(self.layer)
        qkv = read.anatomy.attention.qkv
        packed: tuple[tuple[str, ...], ...] = ()
        if isinstance(qkv, SplitQKV) and could_pack(qkv.linears, self.shared):
            packed = tuple(zip(*(linear.parameters for linear in qkv.linears), strict=True))
        inside = {name for group in packed for name in group}
        return (*packed, *((name,) for name in read.get_param_names().names if name not in inside))

    def install(self) -> None:
        # The class's own forward, bound (see ``patched``), would hide the fused one.
        self.layer.__dict__.pop("forward", None)
        self.layer.__class__ = fused_class(self.original, self.policy)  # type: ignore[arg-type]  # classes do hash
        assert isinstance(self.layer, FusedLayer)
        try:
            self.layer._fused_plan = settle(self.execution)
            if self.layer._fused_plan in CAPTURED:
                self.layer._fused_backend = backend()
            if self.shared:
                self.layer._fused_shared = self.shared
            assert self.layer.fused is not None
        except BaseException:
            self.revert()
            raise

    def revert(self) -> None:
        if not isinstance(self.layer, FusedLayer):
            return
        release_all(self.layer)
        state = self.layer._fused_state
        if not self.layer._fused_looked_at:  # a copy
            by_columns(self.layer.named_parameters(), self.layer._fused_by_rows)
        if state is not None:
            state.give_back(self.layer)
        if not patched(self.layer):
            self.layer.__dict__.pop("forward", None)
        for name in ("_fused_state", "_fused_shared", "_fused_by_rows", "_fused_backend", "_fused_plan"):
            self.layer.__dict__.pop(name, None)
        self.layer.__class__ = self.original  # type: ignore[assignment]  # it is no FusedLayer any more


@functools.cache
def fused_class(original: type[nn.Module], policy: type[AnatomyPolicy]) -> type[nn.Module]:
    """The fused subclass of ``original`` under ``policy``: one per pair, so that ``type`` comparisons make sense. It keeps the
    original's name, by which accelerate and FSDP know what stays on one device; its qualified name differs."""

    @functools.wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, FusedLayer):  # reverted, while something has wrapped this method
            return original.forward(self, *args, **kwargs)
        return self._fused_forward(args, kwargs)

    described = getattr(original, policy.call.signature, original.forward)
    parameters = tuple(inspect.signature(described).parameters)[1:]
    namespace = {
        "__module__": original.__module__,
        "__qualname__": f"Fused{original.__qualname__}",
        "__doc__": f"{original.__name__} with a fused forward, installed by {policy.__name__}.",
        "forward": forward,
        "_fused_policy": policy,
        "_fused_original": original,
        "_fused_parameters": parameters,
        "_fused_returns": form_of(original, policy.call.returns),
    }
    return type(original.__name__, (FusedLayer, original), namespace)


def _rebuild(original: type[nn.Module], policy: type[AnatomyPolicy]) -> nn.Module:
    cls = fused_class(original, policy)  # type: ignore[arg-type]  # classes do hash
    return cls.__new__(cls)
