"""The replacement of a diffusion model (UNet, VAE), in place.

The model and its parts become fused subclasses of their own classes (``swapped``). What the replacement changes besides
is storage layout: convolution weights to channels_last, attention projections packed. Both keep every parameter object
and value; both are made again when a parameter was exchanged or moved; ``revert`` gives back strides, storages,
classes.

At the boundary a caller notices nothing of it (``boundary``).
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..plans import CAPTURED, Plan, in_words, settle
from ..structure import patched
from ..swap import Swap, UnsupportedLayer, qualified_name
from .capture import CaptureBackend
from .diffusion_attention import FusedAttention
from .diffusion_blocks import (
    FusedConv2d,
    FusedFeedForward,
    FusedGEGLU,
    FusedGroupNorm,
    FusedTransformer2D,
)
from .graphs import Graphed
from .swapped import Swapped, restore_class, swapped_class
from .transforms import lasting
from .watch import Watch

if TYPE_CHECKING:
    from ..base import DSPolicy

PARTS: Mapping[str, type[Swapped]] = {
    "diffusers.models.attention_processor:Attention": FusedAttention,
    "diffusers.models.activations:GEGLU": FusedGEGLU,
    "diffusers.models.attention:FeedForward": FusedFeedForward,
    "diffusers.models.transformers.transformer_2d:Transformer2DModel": FusedTransformer2D,
    "torch.nn.modules.conv:Conv2d": FusedConv2d,
    "torch.nn.modules.normalization:GroupNorm": FusedGroupNorm,
}
"""What is swapped inside a model, by exact class."""


class Derived:
    """What is derived from a model, and kept by the model itself: every part knows the model's state, and whatever that kept of
    the model would keep it alive when nobody else does."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.graphs: dict[str, Graphed] = {}


class DiffusionState:
    """What one replacement derived from its model, and what has happened to it.

    ``calls`` counts calls of the fused path, ``fallbacks`` by reason what ran the original's own code instead,
    ``graphs`` holds the captured graphs by the name of what was captured ("forward", "encoder", "decoder").

    Every part knows the state, and the state must not keep the model: a copy of one part would bring all of it along.
    """

    def __init__(
        self,
        root: nn.Module,
        policy: type[DSPolicy],
        *,
        backend: type[CaptureBackend] | None,
        shared: frozenset[str],
        execution: Plan,
    ) -> None:
        self.owner: weakref.ref[nn.Module] | None = weakref.ref(root)
        self.policy = policy
        self.execution = execution
        self.backend = backend
        self.shared = shared
        self._start()

    def _start(self) -> None:
        self.calls = 0
        self.fallbacks: Counter[str] = Counter()
        self._made: CaptureBackend | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("policy", "backend", "shared", "execution")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy counts its own calls, derives its own caches, and belongs to the model that was copied with it, if one was."""
        self.__dict__.update(state)
        self.owner = None
        self._start()

    @property
    def detached(self) -> bool:
        """True for the state of a part that was copied, or kept, without its model."""
        return self.owner is None or self.owner() is None

    def of(self, root: nn.Module) -> DiffusionState:
        """The state of ``root``: this one, unless that is another model's, from which ``root`` was copied attribute by
        attribute."""
        if self.detached:
            self.owner = weakref.ref(root)
        if self.root is root:
            return self
        another = copy.copy(self)
        another.owner = weakref.ref(root)
        another.forget()
        return another

    @property
    def root(self) -> nn.Module:
        root = None if self.owner is None else self.owner()
        assert root is not None, "asked of a part without its model"
        return root

    @property
    def _derived(self) -> Derived:
        found: Derived = self.root.__dict__.setdefault("_fused_derived", Derived())
        return found

    @property
    def graphs(self) -> dict[str, Graphed]:
        """The captured graphs."""
        return self._derived.graphs

    @property
    def plan(self) -> str:
        """How the replacement runs, in a few words."""
        attentions = [one for one in self.root.modules() if isinstance(one, FusedAttention)]
        packed = sum(one._fused_packed is not None for one in attentions)
        graphs = "" if self.backend is None else f", graphs by {self.backend.name}"
        convolutions = [one for one in self.root.modules() if isinstance(one, FusedConv2d)]
        laid = sum(one.weight.is_contiguous(memory_format=torch.channels_last) for one in convolutions)
        form = "channels_last" if laid == len(convolutions) else f"channels_last in {laid} of {len(convolutions)} convolutions"
        plan = in_words(self.execution, self.root.parameters())
        return f"{plan}, {form}, {packed} of {len(attentions)} attentions packed{graphs}"

    def refresh(self) -> bool:
        """Lay out and pack anew, where a parameter or submodule is not the one that this was done for; True where one was not."""
        watch = self._derived.watch
        if watch is not None and not watch.stale():
            return False
        with lasting():
            self.bind()
        return True

    def bind(self) -> None:
        for name, module in self.root.named_modules():
            if isinstance(module, Swapped):  # a part may have been copied and put back
                module.__dict__["_fused_state"] = self
            if isinstance(module, FusedConv2d):
                module.fused_lay_out()
            elif isinstance(module, FusedAttention):
                module._fused_name = name
                module.fused_bind()
        self._derived.watch = Watch(self.root)

    def unbind(self, *gone: nn.Module) -> None:
        """Give every parameter the storage and strides that it had, also of parts that are ``gone`` from the model."""
        with lasting():
            for module in (*gone, *self.root.modules()):
                if isinstance(module, FusedAttention):
                    module.fused_unbind()
                elif isinstance(module, FusedConv2d):
                    module.fused_give_back()
        self.forget()

    def forget(self) -> None:
        """Derive anew when asked next."""
        self.root.__dict__["_fused_derived"] = Derived()

    def graph(self, name: str, module: nn.Module, function: Any, sample: Tensor) -> Any:
        """``function`` behind captured graphs, which refresh by themselves, where the backend takes ``sample``'s device; else
        ``function``, all refreshed."""
        if self.backend is not None and self._made is None:
            self._made = self.backend.made()
        if self._made is None or self._made.refuses(sample) is not None:
            self.refresh()
            return function
        graphs = self.graphs
        if name not in graphs:
            graphs[name] = Graphed(function, backend=self._made, modules=(module,), prepare=self.refresh, veto=self._stateful)
        return graphs[name]

    def _stateful(self) -> str | None:
        """A processor that this package does not know may keep state that a graph would freeze."""
        watch = self._derived.watch
        assert watch is not None, "bound before a graph is asked for"
        for module in watch.modules:
            processor = module.__dict__.get("processor")
            if processor is not None and qualified_name(type(processor)) not in _STATELESS:
                return f"attention processor {type(processor).__name__}"
        return None


_STATELESS = frozenset(
    f"diffusers.models.attention_processor:{name}"
    for name in (
        "AttnProcessor",
        "AttnProcessor2_0",
        "AttnAddedKVProcessor",
        "AttnAddedKVProcessor2_0",
        "FusedAttnProcessor2_0",
    )
)


class FusedRoot(Swapped):
    """Mixin before a whole diffusion model."""

    _fused_transient = ("_fused_derived",)

    @property
    def _fused_policy(self) -> type[DSPolicy]:
        return self._fused_state.policy

    @property
    def fused(self) -> DiffusionState:
        self.__dict__["_fused_state"] = state = self._fused_state.of(self)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_fused_state"] = self._fused_state.of(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # What is watched, or captured, would keep the parameters that were here until the next call.
        self.fused.forget()
        return super()._apply(fn, recurse)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As the original; a memory format that is asked for is the one that ``revert`` gives back."""
        if kwargs.get("memory_format") is not None:
            self.fused.unbind()
        return super().to(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"replaced by {self._fused_policy.__name__}, plan: {self.fused.plan}"

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As the original: files hold plain contiguous tensors under the original's class name."""
        with self._fused_laid_out_as_original():
            return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _fused_laid_out_as_original(self) -> Iterator[None]:
        self.fused.unbind()
        try:
            yield
        finally:
            self.fused.refresh()


class DiffusionSwap(Swap):
    """Swaps a diffusion model's classes, and back. ``mixin`` and ``parts`` say what each becomes."""

    def __init__(
        self,
        root: nn.Module,
        policy: type[DSPolicy],
        *,
        mixin: type[FusedRoot],
        parts: Mapping[str, type[Swapped]] = PARTS,
        backend: type[CaptureBackend] | None,
    ) -> None:
        refuse_unless_plain(root)
        self.root = root
        self.mixin = mixin
        self.parts = parts
        self.backend = backend
        self.policy = policy
        self._swapped: list[nn.Module] = []

    def install(self) -> None:
        plan = settle(self.execution)
        if plan in (Plan.PACKED, *CAPTURED):  # weights of convolutions are laid out channels_last, linears stay beside them,
            plan = settle(Plan.AUTO)  # and calls are captured as a whole
        state = DiffusionState(self.root, self.policy, backend=self.backend, shared=self.shared, execution=plan)
        try:
            for module in self.root.modules():
                mixin = self.mixin if module is self.root else self.parts.get(qualified_name(type(module)))
                if mixin is not None:
                    if not patched(module):  # the class's own forward, bound, would hide the fused one
                        module.__dict__.pop("forward", None)
                    self._swapped.append(module)
                    module.__class__ = swapped_class(type(module), mixin)
                    module.__dict__["_fused_state"] = state
            state.refresh()
        except BaseException:
            self._restore(state)
            raise

    def revert(self) -> None:
        if isinstance(self.root, FusedRoot):
            self._restore(self.root.fused)

    def _restore(self, state: DiffusionState) -> None:
        state.unbind(*self._swapped)
        for module in (*self._swapped, *self.root.modules()):
            restore_class(module)
        self._swapped.clear()


def refuse_unless_plain(root: nn.Module) -> None:
    """Raise ``UnsupportedLayer`` for what no replacement of a diffusion model expresses."""
    name = type(root).__name__
    if patched(root):
        raise UnsupportedLayer("forward is patched on the instance (offloading or another tool's hooks)", layer=name)
    for path, parameter in root.named_parameters():
        if type(parameter) is not nn.Parameter:
            raise UnsupportedLayer(f"{path} is a {type(parameter).__name__}, not a plain parameter", layer=name)
        if not parameter.is_floating_point() or torch.finfo(parameter.dtype).bits < 16:
            raise UnsupportedLayer(f"{path} has dtype {parameter.dtype}", layer=name)
    for path, module in root.named_modules():
        if getattr(module, "fused_projections", False):
            raise UnsupportedLayer(f"{path} is fused by fuse_qkv_projections already; unfuse it first", layer=name)
