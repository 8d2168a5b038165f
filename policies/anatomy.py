"""LayerAnatomy: the neutral description of one Transformer layer.

A policy reads a layer into this description; a replacement is built from nothing else. It therefore has to be complete
(two layers with equal anatomies compute the same function) and it must not favour one architecture: norm position,
residual wiring, projection layout, positions and causality are all said, never implied.

Descriptions are frozen and hold the layer's own tensors by reference: nothing is copied while reading.

Shapes use these letters: D hidden size, H query heads, K key/value heads, E head size, F intermediate size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class NormKind(Enum):
    LAYER = "layer norm"
    RMS = "RMS norm"


class NormPosition(Enum):
    """Where a block's norm stands: before the block (inside the residual branch) or after the residual sum."""

    PRE = "pre-norm"
    POST = "post-norm"


class QKVLayout(Enum):
    """How the rows of a fused QKV projection are ordered.

    BLOCKED      all queries, then all keys, then all values
    INTERLEAVED  for each key/value head: its H/K queries, its key, its value (Megatron v2; per head when K == H)
    """

    BLOCKED = "blocked"
    INTERLEAVED = "interleaved"


class Causality(Enum):
    """What the layer itself adds to the mask it is given.

    NEVER       nothing: the mask says it all
    IF_NO_MASK  causal when no mask is given and there is more than one query (transformers' sdpa rule)
    ALWAYS      causal whatever the mask says (GPT-Neo's own buffer)
    ONLY        causal, and a mask that is given is passed over (Megatron's window attention)
    """

    NEVER = "never"
    IF_NO_MASK = "if no mask is given"
    ALWAYS = "always"
    ONLY = "only"


class RotaryStyle(Enum):
    """Which elements of a head form a rotated pair: (i, i + E/2) or (2i, 2i + 1)."""

    HALF = "half"
    EVERY_TWO = "every two"


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A projection by name. ``weight`` is (out, in), or (in, out) where ``transposed`` (transformers' Conv1D)."""

    name: str
    weight: Tensor
    bias: Tensor | None
    transposed: bool = False

    @property
    def weight_out_in(self) -> Tensor:
        """The weight as (out, in), a view."""
        return self.weight.t() if self.transposed else self.weight

    @property
    def features(self) -> tuple[int, ...]:
        """(out, in), without touching the weight; something else of a weight that is sharded."""
        shape = tuple(self.weight.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def parameters(self) -> dict[str, Tensor]:
        named = {f"{self.name}.weight": self.weight, f"{self.name}.bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """A norm by name. ``weight`` and ``bias`` are (D,) or None; ``gain_offset`` is added to the weight (1 for
    zero-centred gains). ``rounds_last``: an RMS norm that rounds to the input's dtype after the gain instead of before
    it (``torch.nn.RMSNorm``)."""

    name: str
    kind: NormKind
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    gain_offset: float = 0.0
    rounds_last: bool = False

    @property
    def parameters(self) -> dict[str, Tensor]:
        named = {f"{self.name}.weight": self.weight, f"{self.name}.bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitQKV:
    """Three projections: query to H*E, key and value to K*E."""

    query: Linear
    key: Linear
    value: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.query, self.key, self.value)


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedQKV:
    """One projection to (H + 2K) * E rows, ordered by ``layout``."""

    linear: Linear
    layout: QKVLayout

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.linear,)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitCrossQKV:
    """Cross-attention whose keys and values come from one projection of the encoder's states, keys first (GPT-2)."""

    query: Linear
    key_value: Linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (self.key_value, self.query)


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions on the first ``size`` elements of each head; cosines and sines come with the call.

    ``size`` None leaves it to the call: as many elements as it brings angles for, and none where it brings none.
    """

    style: RotaryStyle
    size: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One attention block.

    ``scale`` multiplies query-key products. ``window`` keeps the latest so many keys of each query, or all if None.
    ``module`` is the layer's own attention module: implementation and cache index are read from it at each call.
    ``even_if_blind``: a query that may attend to no key at all attends to every key evenly (scores are overwritten by
    the mask instead of lowered by it); elsewhere its result is undefined.
    ``scores_in_float32``: the original's eager attention adds the mask to scores of float32, whatever the layer's dtype.
    """

    qkv: SplitQKV | FusedQKV | SplitCrossQKV
    out: Linear
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    causality: Causality
    module: nn.Module
    cache_index: int | None = None
    window: int | None = None
    rotary: Rotary | None = None
    alibi: bool = False
    even_if_blind: bool = False
    scores_in_float32: bool = False
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (*self.qkv.linears, self.out)

    @property
    def features(self) -> tuple[tuple[Linear, tuple[int, int]], ...]:
        """Each projection with (out, in) features as the heads make it give and take; in is -1 where they do not say."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        match self.qkv:
            case SplitQKV():
                given: tuple[int, ...] = (queries, keys, keys)
            case FusedQKV():
                given = (queries + 2 * keys,)
            case SplitCrossQKV():
                given = (2 * keys, queries)
        projections = zip(self.qkv.linears, given, strict=True)
        return (*((linear, (rows, -1)) for linear, rows in projections), (self.out, (-1, queries)))


class ActivationKind(Enum):
    """Activations that a replacement computes itself; everything else stays the layer's own function."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    GELU_TANH_SHORT = "gelu_tanh with its constant cut to eight digits"
    QUICK_GELU = "quick_gelu"
    RELU = "relu"
    SILU = "silu"
    OWN = "the layer's own"


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation:
    """``function`` is the layer's own; ``kind`` names it where a replacement may use a kernel instead."""

    kind: ActivationKind
    function: Callable[[Tensor], Tensor]
    name: str | None = None
    """Path of the activation inside the layer, where it is a module."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        named = getattr(self.function, "named_parameters", None)
        return {} if named is None or self.name is None else {f"{self.name}.{n}": p for n, p in named()}


@dataclass(frozen=True, kw_only=True, eq=False)
class MLP:
    """``down(activation(up(x)))``, or ``down(activation(gate(x)) * up(x))`` where there is a gate.

    ``gate_up`` replaces ``gate`` and ``up`` where one projection yields both, gate rows first (Megatron).
    """

    down: Linear
    activation: Activation
    up: Linear | None = None
    gate: Linear | None = None
    gate_up: Linear | None = None

    def __post_init__(self) -> None:
        assert (self.up is None) != (self.gate_up is None), "an MLP has either up or gate_up"

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(linear for linear in (self.gate, self.up, self.gate_up, self.down) if linear is not None)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerAnatomy:
    """A whole layer: attention, optional cross-attention, MLP, their norms and how they are wired.

    ``attention_norm`` belongs to the attention block (before or after it, as ``norm_position`` says), ``mlp_norm`` to
    the MLP. ``parallel``: attention and MLP both read the layer's input, and ``mlp_norm`` None means that they share
    ``attention_norm``. ``residual_from_norm``: the residual branch starts after the norm instead of before it.
    """

    attention: Attention
    mlp: MLP
    attention_norm: Norm
    mlp_norm: Norm | None
    norm_position: NormPosition
    hidden_size: int
    parallel: bool = False
    residual_from_norm: bool = False
    cross_attention: Attention | None = None
    cross_norm: Norm | None = None

    @property
    def norms(self) -> tuple[Norm, ...]:
        blocks = (self.attention, self.cross_attention)
        heads = (norm for block in blocks if block is not None for norm in (block.query_norm, block.key_norm))
        return tuple(n for n in (self.attention_norm, self.mlp_norm, self.cross_norm, *heads) if n is not None)

    @property
    def linears(self) -> tuple[Linear, ...]:
        cross = self.cross_attention.linears if self.cross_attention is not None else ()
        return (*self.attention.linears, *cross, *self.mlp.linears)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Every parameter of the layer by its own name, in the order attention, MLP, norms."""
        named: dict[str, Tensor] = {}
        for linear in self.linears:
            named |= linear.parameters
        named |= self.mlp.activation.parameters
        for norm in self.norms:
            named |= norm.parameters
        return named

    def with_parameters(self, layer: nn.Module) -> LayerAnatomy:
        """The same of ``layer``, which has other tensors under the same names."""
        anatomy: LayerAnatomy = _with_parameters(self, dict(layer.named_parameters(remove_duplicate=False)))
        return anatomy


def _with_parameters(part: Any, named: Mapping[str, Tensor]) -> Any:
    if isinstance(part, Linear | Norm):
        found: dict[str, Any] = {one: named.get(f"{part.name}.{one}") for one in ("weight", "bias")}
        return dataclasses.replace(part, **found)
    inside = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    parts = {name: _with_parameters(one, named) for name, one in inside.items() if dataclasses.is_dataclass(one)}
    return dataclasses.replace(part, **parts)
