"""Projections of a replacement, and the packing of several into one.

Packing must not cost memory: the packed tensor takes over as the storage, and the layer's own parameters become views
of it. They stay the same parameter objects with the same values, so names, ties, optimisers and in-place updates keep
working, and reverting means giving each parameter a storage of its own again.

Shapes: D inputs, N outputs; x is (..., D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name everybody knows)

from ..anatomy import Activation, Linear
from ..plans import Plan
from . import onednn, widened
from .activations import KERNELS
from .memory import alone, lay_out, may_move
from .packed import Linears, PackedWeight, Packer
from .transforms import compiling

Emit = Callable[[str, Tensor], None]
"""Receives each named stage's tensor, for whoever wants to see where two layers part."""


@dataclass(frozen=True, eq=False)
class Projection:
    """``x @ weight.T + bias`` with weight (N, D), a view of ``stored``: usually the layer's own parameter.

    ``onednn`` lets calls that suit it run on oneDNN, activation or residual included, in float32 where it lacks the dtype; the
    rest run on public operators.
    ``transposed``: ``stored`` is (D, N). ``held``: the weight in oneDNN's layout, which ``stored`` has no memory beside;
    several projections that are held as one have no ``stored``.
    """

    name: str
    stored: Tensor | None
    bias: Tensor | None
    onednn: bool = False
    transposed: bool = False
    held: PackedWeight | None = None
    _known: dict[tuple[Any, ...], _Fastest] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, linear: Linear, plan: Plan, packer: Packer | None = None) -> Projection:
        held = None if packer is None else packer.pack(linear)
        return cls(linear.name, linear.weight, linear.bias, plan is not Plan.PLAIN, linear.transposed, held)

    @property
    def weight(self) -> Tensor:
        """(N, D). The view is taken anew at each call: one that was kept would pass no gradients on. Of several projections
        that are held as one, a copy."""
        if self.stored is None:
            assert self.held is not None
            return self.held.plain()
        return self.stored.t() if self.transposed else self.stored

    def runs(self, x: Tensor) -> bool:
        """Whether it can run a call with ``x``: any call, unless several projections' weights are held as one."""
        return self.held is None or self.held.suits(x, self.bias)

    def __call__(self, x: Tensor, emit: Emit) -> Tensor:
        held = self._held_for(x)
        if held is None:
            weight = self.weight
            return self._by(self._fastest(x, weight).linear, x, weight, emit)
        operators, packed = held
        out = operators.linear(x, packed, self.bias)
        emit(self.name, out)
        return out

    def activated(self, x: Tensor, activation: Activation, emit: Emit) -> Tensor:
        """``activation`` of the projection."""
        if activation.kind not in onednn.POST_OPERATIONS or onednn.activates_slowly():
            return activate(activation, self(x, emit))
        held = self._held_for(x)
        if held is not None:
            operators, packed = held
            return operators.activate(x, packed, self.bias, activation.kind)
        weight = self.weight
        fastest = self._fastest(x, weight)
        active = None if onednn.gates_slowly(weight, activation.kind) else fastest.active
        if active is not None and active.suits(x, weight, self.bias):
            return active.activate(x, weight, self.bias, activation.kind)
        return activate(activation, self._by(fastest.linear, x, weight, emit))

    def plus(self, x: Tensor, residual: Tensor, emit: Emit) -> Tensor:
        """``residual`` (..., N) plus the projection."""
        if residual.dtype is not x.dtype:
            return residual + self(x, emit)
        held = self._held_for(x, residual)
        if held is not None:
            operators, packed = held
            return operators.add(x, packed, self.bias, residual)
        if self.held is not None and self.held.packed is not None:
            return residual + self(x, emit)
        weight = self.weight
        fastest = self._fastest(x, weight)
        if fastest.summed is not None and fastest.summed.suits(x, weight, self.bias, residual):
            return fastest.summed.add(x, weight, self.bias, residual)
        return residual + self._by(fastest.linear, x, weight, emit)

    def _by(self, operators: Linears | None, x: Tensor, weight: Tensor, emit: Emit) -> Tensor:
        """The projection by itself, by ``operators`` where they suit."""
        if operators is not None and operators.suits(x, weight, self.bias):
            out = operators.linear(x, weight, self.bias)
        else:
            out = F.linear(x, weight, self.bias)
        emit(self.name, out)
        return out

    def _held_for(self, x: Tensor, residual: Tensor | None = None) -> tuple[Linears, Any] | None:
        """The operators and the packed weight that this call can run on, where the weight is held."""
        packed = None if self.held is None else self.held.packed  # another thread may have it given back at any moment
        if self.held is None or packed is None or not self.held.suits(x, self.bias, residual):
            return None
        return self.held.operators, packed

    def _fastest(self, x: Tensor, weight: Tensor) -> _Fastest:
        """The answers for the last few sizes are remembered: to find them anew for each projection was 3 to 5 % of a step of
        decoding at 768 elements."""
        if not self.onednn:
            return _PUBLIC
        if compiling():
            return _fastest(x, weight, self.bias)
        asked = (x.numel() // x.shape[-1], x.dtype, weight.stride())
        found = self._known.get(asked)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[asked] = _fastest(x, weight, self.bias)
        return found


class _Fastest(NamedTuple):
    """What is fastest for a linear by itself, with an activation, and with a sum, where it may run. None: torch's public
    operators."""

    linear: Linears | None = None
    active: Linears | None = None
    summed: Linears | None = None


_PUBLIC = _Fastest()
_REMEMBERED = 64
"""Sizes of calls."""


def _fastest(x: Tensor, weight: Tensor, bias: Tensor | None) -> _Fastest:
    if widened.faster(x, weight):
        return _Fastest(widened, widened, widened)
    linear, active = (None if onednn.loses(x, weight, active=active) else onednn for active in (False, True))
    return _Fastest(linear, active, None if onednn.sums_slowly(weight, bias) else linear)


def activate(activation: Activation, x: Tensor) -> Tensor:
    """Apply ``activation``, by torch's kernel where it has one."""
    kernel = KERNELS.get(activation.kind, activation.function)
    return kernel(x)


def can_pack(linears: tuple[Linear, ...], shared: frozenset[str]) -> bool:
    """True where one tensor may take over these projections' storages, if nobody else holds them. See ``held_by_nobody_else``."""
    return could_pack(linears, shared) and not any(linear.weight.is_meta for linear in linears)


def held_by_nobody_else(linears: tuple[Linear, ...], ours: Iterable[Tensor] = ()) -> bool:
    """True where nobody but these projections, and ``ours``, holds their storages, or one storage is all of theirs already."""
    weights, biases = [linear.weight for linear in linears], _biases(linears)
    return all(alone(some, ours) or _joined(some) is not None for some in (weights, biases))


def could_pack(linears: tuple[Linear, ...], shared: frozenset[str]) -> bool:
    """True where one tensor may take over these projections' storages once they have any.

    ``shared`` names the layer's parameters that other modules hold too: those must keep their storage.
    """
    tensors = [*(linear.weight for linear in linears), *_biases(linears)]
    same_kind = len({(t.dtype, t.device, t.requires_grad) for t in tensors}) == 1
    all_or_no_bias = len({linear.bias is None for linear in linears}) == 1
    movable = all(may_move(t) for t in tensors)
    named = {name for linear in linears for name in linear.parameters}
    own = not named & shared and len({id(t) for t in tensors}) == len(tensors)
    # Rows of the packed tensor are contiguous; a parameter of other strides could not be given back as it was.
    movable = movable and all(t.is_contiguous() for t in tensors)
    return same_kind and all_or_no_bias and movable and own and not any(linear.transposed for linear in linears)


def _biases(linears: tuple[Linear, ...]) -> list[Tensor]:
    return [linear.bias for linear in linears if linear.bias is not None]


def pack(linears: tuple[Linear, ...], plan: Plan, held: PackedWeight | None = None) -> Projection:
    """One projection with the rows of all ``linears``, whose parameters become views of it. Weights that are ``held`` in
    oneDNN's layout are joined there; it can run only calls that suit them."""
    biases = _biases(linears)
    name = " and ".join(linear.name for linear in linears)
    stored = None if held is not None else _take_over([linear.weight for linear in linears])
    return Projection(name, stored, _take_over(biases) if biases else None, plan is not Plan.PLAIN, held=held)


def _take_over(parameters: list[Tensor]) -> Tensor:
    joined = _joined(parameters)
    if joined is not None:
        return joined
    packed = torch.cat([parameter.detach() for parameter in parameters])
    rows = [parameter.shape[0] for parameter in parameters]
    for parameter, part in zip(parameters, packed.split(rows), strict=True):
        parameter.data = part
    return packed


def _joined(parameters: list[Tensor]) -> Tensor | None:
    """The tensor whose rows these parameters are already, one behind the other, where their storage holds no more. Packed ones
    are none's, and are not touched."""
    if any(type(parameter) is not nn.Parameter for parameter in parameters):
        return None
    first = parameters[0].detach()
    address = first.data_ptr()
    for parameter in parameters:
        if parameter.data_ptr() != address:
            return None
        address += parameter.nbytes
    storage, size = first.untyped_storage(), sum(parameter.nbytes for parameter in parameters)
    if storage.nbytes() != size or any(p.untyped_storage().data_ptr() != storage.data_ptr() for p in parameters):
        return None
    return first.new_empty(0).set_(storage, 0, (sum(p.shape[0] for p in parameters), *first.shape[1:]))  # type: ignore[call-overload]


def unpack(linears: tuple[Linear, ...]) -> None:
    """Give each parameter of ``linears`` a storage of its own again; values stay bit for bit."""
    for linear in linears:
        for parameter in linear.parameters.values():
            parameter.data = parameter.data.clone()


def by_rows(linears: tuple[Linear, ...], shared: frozenset[str]) -> frozenset[str]:
    """Lay out in memory as (N, D) what is stored as (D, N), where it is multiplied faster so. Parameters stay the objects that
    they were, of the same shape and values; their strides change. Returns the names of those that did, for ``by_columns``."""
    done = [linear for linear in linears if linear.transposed and f"{linear.name}.weight" not in shared and _movable(linear)]
    for linear in done:
        linear.weight.data = linear.weight.data.t().contiguous().t()
    return frozenset(f"{linear.name}.weight" for linear in done)


def by_columns(named: Iterable[tuple[str, Tensor]], names: frozenset[str]) -> None:
    """Undo ``by_rows`` of those of ``named`` parameters that are among ``names``."""
    for name, weight in named:
        if name in names:
            lay_out(weight, (weight.shape[1], 1))


def _movable(linear: Linear) -> bool:
    weight = linear.weight
    movable = may_move(weight) and not weight.is_meta and weight.is_contiguous()
    return movable and onednn.wants_rows(weight) and alone((weight,))
