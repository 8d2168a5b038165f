"""Arguments and results as trees: tensors at the leaves, and a hashable description of everything that is not a value.

A graph may only be replayed for a call that differs from the captured one in nothing but tensors' values. So the
description holds, of a tensor: shape, strides, dtype, device and whether it requires a gradient; of anything else its
type and value; of containers their type, keys and order. Two calls may share a graph where these are equal.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .memory import overlap
from .preallocated import Preallocated

_VALUES = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device)
_VALUES_OF_TORCH = (torch.memory_format, torch.layout, torch.Size)
_BY_WORD = (float, complex)
"""Their values differ (-0.0) or are the same (NaN) where ``==`` says otherwise."""
_TENSORS = frozenset((Tensor, nn.Parameter, nn.Buffer))


class NotCapturableError(ValueError):
    """A call that no graph can stand for; says why in the words that end up in the count of eager calls."""


class TensorSpec(NamedTuple):
    """Everything about a tensor but its values. A tuple: one is made of each argument at each call."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        if type(tensor) not in _TENSORS:
            raise NotCapturableError(f"a tensor of class {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise NotCapturableError(f"a tensor of layout {tensor.layout}")
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)


@dataclass(frozen=True)
class ValueSpec:
    """A value that is part of the signature, and what it is told from others by."""

    kind: type
    key: Any
    value: Any = field(compare=False)


_NOTHING = ValueSpec(type(None), None, None)


class ContainerSpec(NamedTuple):
    """A container. ``names`` are (type, key) of a mapping's items or names of fields; empty for sequences."""

    kind: type
    names: tuple[Any, ...]
    children: tuple[Spec, ...]


@dataclass(frozen=True)
class PreallocatedSpec:
    """A layer of a static cache, which is not kept alive by what was captured of it."""

    form: tuple[Any, ...]
    layer: weakref.ref[Any] = field(compare=False)


Spec = TensorSpec | ValueSpec | ContainerSpec | PreallocatedSpec


def flatten(tree: Any) -> tuple[list[Tensor], Spec]:
    """The tensors of ``tree`` in order, and its description. Raises ``NotCapturableError`` for what has none."""
    leaves: list[Tensor] = []
    return leaves, _describe(tree, leaves)


def preallocated_in(spec: Spec) -> list[Preallocated]:
    """The layers of static caches that a call brings."""
    if isinstance(spec, PreallocatedSpec):
        return [Preallocated(spec.layer(), spec.form)]
    children = spec.children if isinstance(spec, ContainerSpec) else ()
    return [one for child in children for one in preallocated_in(child)]


def fits(tree: Any, spec: Spec, leaves: list[Tensor]) -> bool:
    """Whether ``spec`` is the description of ``tree``, whose tensors are put into ``leaves``. To see that it is takes less than
    to describe, and no hash of a description."""
    if tree is None:
        return spec is _NOTHING
    kind = type(tree)
    if kind in _TENSORS:
        leaves.append(tree)
        return (
            type(spec) is TensorSpec
            and tree.shape == spec.shape
            and tree.stride() == spec.stride
            and tree.dtype is spec.dtype
            and tree.requires_grad is spec.requires_grad
            and tree.device == spec.device
            and tree.layout is torch.strided
        )
    if kind is Preallocated:
        return type(spec) is PreallocatedSpec and bool(tree.form == spec.form)
    if type(spec) is ContainerSpec:
        if kind is not spec.kind:
            return False
        names, items = _items(tree, kind)
        children = spec.children
        return names == spec.names and len(items) == len(children) and all(map(fits, items, children, repeat(leaves)))
    return type(spec) is ValueSpec and kind is spec.kind and bool((repr(tree) if kind in _BY_WORD else tree) == spec.key)


def unflatten(spec: Spec, leaves: Iterator[Tensor]) -> Any:
    """The tree of ``spec`` with the next of ``leaves`` in the place of each tensor."""
    if isinstance(spec, TensorSpec):
        return next(leaves)
    if isinstance(spec, ValueSpec):
        return spec.value
    if isinstance(spec, PreallocatedSpec):
        return Preallocated(spec.layer(), spec.form)
    children = [unflatten(child, leaves) for child in spec.children]
    if spec.kind in (list, tuple):
        return spec.kind(children)
    if not dataclasses.is_dataclass(spec.kind):
        return _rebuild_named(spec, children)
    if issubclass(spec.kind, OrderedDict):
        constructor: Any = spec.kind
        return constructor(**dict(zip((key for _, key in spec.names), children, strict=True)))
    rebuilt: Any = object.__new__(spec.kind)
    for name, child in zip(spec.names, children, strict=True):
        object.__setattr__(rebuilt, name, child)
    return rebuilt


def _rebuild_named(spec: ContainerSpec, children: list[Any]) -> Any:
    if issubclass(spec.kind, tuple):
        return spec.kind(*children)
    mapping: Any = spec.kind
    return mapping(zip((key for _, key in spec.names), children, strict=True))


def _describe(tree: Any, leaves: list[Tensor]) -> Spec:
    if tree is None:
        return _NOTHING
    kind = type(tree)
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return TensorSpec.of(tree)
    if kind in _VALUES or kind in _VALUES_OF_TORCH or isinstance(tree, enum.Enum):
        return ValueSpec(kind, repr(tree) if kind in _BY_WORD else tree, tree)
    if kind is Preallocated:
        return PreallocatedSpec(tree.form, weakref.ref(tree.layer))
    names, items = _items(tree, kind)
    return ContainerSpec(kind, names, tuple([_describe(item, leaves) for item in items]))


def _items(tree: Any, kind: type) -> tuple[tuple[Any, ...], Sequence[Any]]:
    if kind in (list, tuple) or (isinstance(tree, tuple) and hasattr(kind, "_fields")):
        return (), tree
    if kind in (dict, OrderedDict) or (isinstance(tree, OrderedDict) and dataclasses.is_dataclass(kind)):
        if any(type(key) not in _VALUES for key in tree):
            raise NotCapturableError(f"a {kind.__name__} with keys that are not plain values")
        return tuple((type(key), key) for key in tree), list(tree.values())
    fields = None if isinstance(tree, dict) else _fields(kind)
    if fields is not None and getattr(tree, "__dict__", fields.known).keys() <= fields.known.keys():
        return fields.names, fields.values(tree)
    raise NotCapturableError(f"a value of class {kind.__name__}")


class _Fields(NamedTuple):
    """Those of a dataclass."""

    names: tuple[str, ...]
    known: dict[str, None]
    values: Callable[[Any], tuple[Any, ...]]


@functools.cache
def _fields(kind: type) -> _Fields | None:
    """None for any other class than a dataclass."""
    if not dataclasses.is_dataclass(kind):
        return None
    names = tuple(one.name for one in dataclasses.fields(kind))
    several = attrgetter(*names, "__class__")  # of one name it would give no tuple
    return _Fields(names, dict.fromkeys(names), lambda tree: several(tree)[:-1])


class StaticTensor:
    """A tensor whose memory stays where it is, and into which values of one ``TensorSpec`` are copied.

    Dimensions of stride 0 (an expanded tensor) keep it, so the captured function sees the strides that it would have.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in spec.stride)
        self._once = once if 0 in spec.stride else None
        sizes = [1 if stride == 0 else size for size, stride in zip(spec.shape, spec.stride, strict=True)]
        if overlap(sizes, spec.stride):
            raise NotCapturableError("a tensor whose elements share memory")
        self._base = torch.empty_strided(sizes, spec.stride, dtype=spec.dtype, device=spec.device)
        self.tensor = self._base.expand(spec.shape).requires_grad_(spec.requires_grad)

    def fill(self, source: Tensor) -> None:
        """Copy ``source`` in, where no gradient is asked for. It must fit exactly: nothing is broadcast."""
        assert source.shape == self.spec.shape
        self._base.copy_(source if self._once is None else source[self._once])


def clone_leaves(leaves: list[Tensor]) -> list[Tensor]:
    """Copies that share memory with each other exactly where ``leaves`` do, and never with ``leaves``, of which none is part of a
    graph of gradients."""
    if len(leaves) == 1:
        return [_copy(leaves[0])]
    storages: dict[int, list[int]] = {}
    for index, leaf in enumerate(leaves):
        storages.setdefault(leaf.untyped_storage()._cdata, []).append(index)
    copies: list[Tensor] = list(leaves)
    for indices in storages.values():
        if len(indices) == 1:
            copies[indices[0]] = _copy(leaves[indices[0]])
        else:
            _copy_together(leaves, indices, copies)
    return copies


def _copy(leaf: Tensor) -> Tensor:
    if leaf.is_contiguous():
        return leaf.clone()
    static = StaticTensor(TensorSpec.of(leaf))
    static.fill(leaf)
    return static.tensor


def _copy_together(leaves: list[Tensor], indices: list[int], copies: list[Tensor]) -> None:
    storage = leaves[indices[0]].untyped_storage().clone()
    made: dict[int, Tensor] = {}
    for index in indices:
        leaf = leaves[index]
        if id(leaf) not in made:
            empty = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
            made[id(leaf)] = empty.set_(storage, leaf.storage_offset(), leaf.shape, leaf.stride())
        copies[index] = made[id(leaf)]
