"""The checkpoint names that DeepSpeed's containers load a layer by, found by asking them to load one.

A container's ``load_params`` fills a module from a state dict. It is given a state dict that notes what is looked up and
a module that takes whatever it is given, so that names and places are read off without a line of it being changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = {
    "attention.attn_qkvw": "qkv_weight",
    "attention.attn_qkvb": "qkv_bias",
    "attention.attn_ow": "out_weight",
    "attention.attn_ob": "out_bias",
    "mlp.inter_w": "up_weight",
    "mlp.inter_b": "up_bias",
    "mlp.output_w": "down_weight",
    "mlp.output_b": "down_bias",
    "mlp.attn_nw": "near_weight",
    "mlp.attn_nb": "near_bias",
    "norm_w": "far_weight",
    "norm_b": "far_bias",
}
"""Where a container puts what it loads, and the part that the policy's own tuples give for the same place."""


@dataclass
class Loaded:
    """What came of loading one layer. ``missing`` names were asked for and are not in the layer, ``unread`` ones are in
    the layer and were never asked for; ``misplaced`` are places that got another tensor than the tuples give."""

    error: str = ""
    missing: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        return bool(self.error or self.missing or self.unread or self.misplaced)


def load(container: Any, policy: Any, state: Mapping[str, Tensor], parts: Mapping[str, Any]) -> Loaded:
    """Load ``state`` by ``container``'s names, and compare with ``parts``, what ``policy``'s tuples said."""
    names, module = _Watched(state), _module()
    error = ""
    try:
        container.load_params(SimpleNamespace(policy=policy), module, names, _Unquantised(), _Whole(), "")
    except Exception as problem:
        error = f"load_params raises {type(problem).__name__}: {' '.join(str(problem).split())}"
    return Loaded(
        error=error,
        missing=tuple(dict.fromkeys(name for name in names.asked if name not in state)),
        unread=tuple(name for name in state if name not in names.asked) if not error else (),
        misplaced=tuple(_misplaced(module, parts)) if not error else (),
    )


@dataclass
class _Watched(Mapping[str, Any]):
    """A state dict that remembers what it was asked for."""

    state: Mapping[str, Any]
    asked: list[str] = field(default_factory=list)

    def __contains__(self, name: object) -> bool:
        self.asked.append(str(name))
        return name in self.state

    def __getitem__(self, name: str) -> Any:
        self.asked.append(name)
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


class _Unquantised:
    """A weight quantiser that does nothing."""

    q_int8 = False

    def quantize(self, tensor: Tensor) -> Tensor:
        return tensor


class _Whole:
    """Tensor parallelism over one process: every copy is the tensor itself."""

    mp_size = 1

    def copy(self, target: Any, tensor: Tensor, **_: Any) -> Tensor:
        return tensor

    def strided_copy(self, target: Any, tensor: Tensor, **_: Any) -> Tensor:
        return tensor


def _module() -> Any:
    """A module with an empty tensor of the right number of dimensions in every place."""
    import torch

    module = SimpleNamespace(attention=SimpleNamespace(), mlp=SimpleNamespace())
    for slot in SLOTS:
        owner, _, name = slot.rpartition(".")
        matrix = name in ("attn_qkvw", "attn_ow", "inter_w", "output_w")
        setattr(getattr(module, owner) if owner else module, name, torch.empty((0, 0) if matrix else (0,)))
    return module


def _misplaced(module: Any, parts: Mapping[str, Any]) -> Iterator[str]:
    import torch

    for slot, part in SLOTS.items():
        owner, _, name = slot.rpartition(".")
        found, expected = getattr(getattr(module, owner) if owner else module, name), parts.get(part)
        if found is None or expected is None:
            if (found is None or not found.numel()) != (expected is None):
                yield slot
            continue
        if found.dim() == 2:
            found = found.t()
        if found.shape != expected.shape or not torch.equal(found, expected):
            yield slot
