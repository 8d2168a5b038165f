"""Weights held in oneDNN's layout alone, and parameters that give their values back when touched.

While a weight is packed, its parameter stays the object that it was, of the same name, shape, dtype and device, but has
no memory: its data is one NaN, expanded. Whatever asks more of it than its form (``state_dict``, ``load_state_dict``,
``deepcopy``, pickling, ``.to()``, an optimiser, a write in place, the original's own forward) is handed the plain values,
bit for bit: the parameter takes them back first, and the packed weight is gone. The next call that may packs again. So no
value is ever held twice by the layer, and none is read or written past it, but by what never asks Python (docs/plans.md).

A weight is left plain where somebody else holds its memory too (a ``state_dict`` that is still alive, a view, a NumPy
array): what is written there must reach the layer.
"""

from __future__ import annotations

import copy
import ctypes
import sys
import threading
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..anatomy import ActivationKind, Linear
from . import emulated, onednn
from .memory import alone, in_strides, may_move
from .transforms import plainly


class Linears(Protocol):
    """What multiplies by a weight: ``onednn`` and ``widened``. Shapes as in ``onednn``."""

    def suits(self, x: Tensor, weight: Tensor, *others: Tensor | None) -> bool: ...
    def linear(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor: ...
    def activate(self, x: Tensor, weight: Any, bias: Tensor | None, kind: ActivationKind) -> Tensor: ...
    def add(self, x: Tensor, weight: Any, bias: Tensor | None, residual: Tensor) -> Tensor: ...


class Operators(Linears, Protocol):
    """What packs weights besides, and multiplies by packed ones: ``onednn``, or ``emulated`` in tests."""

    def pack(self, weight: Tensor) -> Any: ...
    def unpack(self, packed: Any) -> Tensor: ...
    def held_bytes(self, packed: Any) -> int: ...


_ROOM = 64 * 1024
"""Bytes of padding that are no matter: oneDNN fills small weights up to whole blocks."""


_GIVING_BACK = threading.RLock()
"""Two threads may need the same values."""


class PackedWeight:
    """The weights of ``linears``, which read the same input, as one packed weight with their rows one below the other.

    ``packed`` is None once the parameters have taken their values back.
    """

    def __init__(self, linears: tuple[Linear, ...], operators: Operators, packed: Any) -> None:
        self.operators = operators
        self.packed = packed
        self.dtype = linears[0].weight.dtype
        self._transposed = linears[0].transposed
        self._rows = [linear.weight_out_in.shape[0] for linear in linears]
        # The parameters refer to this object. A strong reference back would keep large weights alive until the garbage
        # collector comes by.
        self._parameters = [weakref.ref(linear.weight) for linear in linears]
        self._strides = [linear.weight.stride() for linear in linears]
        for linear in linears:
            _let_go(linear.weight, self)

    def suits(self, x: Tensor, *others: Tensor | None) -> bool:
        """Whether a call with ``x``, bias and residual may run on the packed weight: of its dtype, on a CPU, nobody
        differentiating or casting."""
        return (
            self.packed is not None
            and x.dtype is self.dtype
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and self._wanted(x, *others))
        )

    def _wanted(self, *tensors: Tensor | None) -> bool:
        every = [*tensors, *(one() for one in self._parameters)]
        return any(one is not None and one.requires_grad for one in every)

    def plain(self) -> Tensor:
        """A plain copy (N, D)."""
        packed = self.packed
        if packed is not None:
            return self.operators.unpack(packed)
        given_back = [weight for weight in (one() for one in self._parameters) if weight is not None]
        return torch.cat([weight.t() if self._transposed else weight for weight in given_back])

    def release(self) -> None:
        """Give the parameters their values back, each in memory of its own."""
        with _GIVING_BACK, plainly():
            if self.packed is None:
                return
            parts = self.operators.unpack(self.packed).split(self._rows)
            self.packed = None
            for reference, part, strides in zip(self._parameters, parts, self._strides, strict=True):
                parameter = reference()
                if parameter is not None:
                    _take_back(parameter, in_strides(part.t() if self._transposed else part, strides))


class PackedParameter(nn.Parameter):
    """The class of a parameter while its values are packed; see the module."""

    _packed_in: PackedWeight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FORM:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        for one in tree_leaves((args, kwargs)):
            release(one)
        return func(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Any:
        release(self)
        return copy.deepcopy(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        release(self)
        return self.__reduce_ex__(protocol)


_FORM: frozenset[Any] = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim", "nbytes", "itemsize")),
        *(getattr(Tensor, name).__get__ for name in ("requires_grad", "grad", "is_leaf", "is_meta", "is_cuda", "is_mkldnn")),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.element_size),
        *(Tensor.is_floating_point, Tensor.is_complex, Tensor.is_inference, Tensor.untyped_storage),
    }
)
"""What may be asked of a parameter without its values: their form, and the storage, whose size says the truth."""


def release(value: Any) -> None:
    """Give ``value`` its plain values back if it is a packed parameter."""
    if type(value) is PackedParameter:
        value._packed_in.release()


def release_all(module: nn.Module) -> None:
    """Give every packed parameter inside ``module`` its values back."""
    for parameter in module.parameters():
        release(parameter)


def release_wrapped(module: nn.Module) -> None:
    """Give the packed parameters their values back that ``module``'s are wrappers of, for a transform of ``torch.func``: it has
    wrapped them without asking for values."""
    for parameter in module.parameters():
        inner: Tensor = parameter
        while torch._C._functorch.is_functorch_wrapped_tensor(inner):
            inner = torch._C._functorch.get_unwrapped(inner)
        release(inner)


def held_bytes(module: nn.Module) -> int:
    """Bytes of the packed weights of ``module``'s parameters, padding included."""
    held = {one._packed_in for one in module.parameters() if type(one) is PackedParameter}
    return sum(one.operators.held_bytes(one.packed) for one in held)


def trim() -> None:
    """Give the system back what packing has freed. A plain weight of 32 MB or less comes from glibc's heap, between two that
    live on, and stays there as a hole: 2.4 % of a model of 1.5 billion parameters in bfloat16."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:
        give_back(0)


class Packer:
    """Packs the weights of one layer, except those that are ``shared`` with other modules."""

    def __init__(self, shared: frozenset[str]) -> None:
        self._shared = shared
        self._waiting: list[tuple[Linear, ...]] = []
        self._asked: set[str] = set()
        self.held = 0

    def pack(self, *linears: Linear) -> PackedWeight | None:
        """The weights of ``linears`` packed as one, or None where they have to stay plain."""
        if not self.can_pack(*linears):
            return None
        if not alone(linear.weight for linear in linears):
            self._waiting.append(linears)
            return None
        operators = _operators(linears[0].weight)
        parts = [linear.weight_out_in.detach() for linear in linears]
        packed = operators.pack(parts[0] if len(parts) == 1 else torch.cat(parts))
        plain = sum(part.nbytes for part in parts)
        if operators.held_bytes(packed) > plain + max(_ROOM, plain // 100):
            return None
        del parts
        self.held += len(linears)
        return PackedWeight(linears, operators, packed)

    def can_pack(self, *linears: Linear) -> bool:
        """Whether oneDNN can hold these weights, if nobody else holds them."""
        self._asked.update(linear.name for linear in linears)
        weights = [linear.weight for linear in linears]
        names = {f"{linear.name}.weight" for linear in linears}
        return (
            not names & self._shared
            and all(_is_own(weight) for weight in weights)
            and len({weight.dtype for weight in weights}) == 1
            and _packs(weights[0])
        )

    def may_pack_more(self) -> bool:
        """True where a weight that was left, because its memory was held elsewhere, is held there no more."""
        return any(alone(one.weight for one in linears) for linears in self._waiting)

    def __str__(self) -> str:
        return f"{self.held} of {len(self._asked)} weights"


def _is_own(weight: Tensor) -> bool:
    """A plain parameter on a CPU that fills a storage of its own."""
    return (
        may_move(weight)
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.numel() > 0
        and weight.untyped_storage().nbytes() == weight.nbytes
    )


def _packs(weight: Tensor) -> bool:
    return onednn.multiplies(weight.dtype) or (emulated.active() and weight.dtype in emulated.DTYPES)


def _operators(weight: Tensor) -> Operators:
    return onednn if onednn.multiplies(weight.dtype) else emulated


def _let_go(parameter: Tensor, packed_in: PackedWeight) -> None:
    parameter.data = parameter.new_full((1,), torch.nan, requires_grad=False).expand(parameter.shape)
    # A graph of gradients that saved the values must not be run backward through NaN: torch's own check notices this.
    torch.autograd.graph.increment_version(parameter)
    parameter.__class__ = PackedParameter
    assert isinstance(parameter, PackedParameter)
    parameter._packed_in = packed_in


def _take_back(parameter: Tensor, values: Tensor) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        parameter.data = values  # before the class: another thread takes a plain parameter for what it is
    parameter.__class__ = nn.Parameter
    del parameter.__dict__["_packed_in"]
