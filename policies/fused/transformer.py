"""A whole fused Transformer layer, from its anatomy and nothing else.

The wiring is spelled out once for each of the three shapes a layer can have. Norm position, parallel residuals and
residuals taken after the norm are read from the anatomy; no architecture is named here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..anatomy import LayerAnatomy, Norm, NormPosition
from ..plans import Plan
from .attention import AttentionCall, FusedAttention
from .linear import Emit, by_columns
from .mlp import FusedMLP
from .norm import normalise
from .packed import Packer


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderStates:
    """What cross-attention reads: ``states`` (B, S, D) and its own mask."""

    states: Tensor
    call: AttentionCall


def silent(name: str, stage: Tensor) -> None:
    """The usual receiver of stages: nobody is looking."""


class FusedTransformerLayer:
    """Computes a layer described by ``anatomy``; ``packing`` lets it take over the storages of split QKV weights, which ``ours``
    hold besides the layer."""

    def __init__(
        self,
        anatomy: LayerAnatomy,
        plan: Plan = Plan.PLAIN,
        *,
        packing: bool = True,
        shared: frozenset[str] = frozenset(),
        ours: tuple[Tensor, ...] = (),
    ) -> None:
        self.anatomy = anatomy
        self.emit: Emit = silent
        self.packer = Packer(shared) if plan is Plan.PACKED else None
        self.attention = FusedAttention(anatomy.attention, plan, packing=packing, shared=shared, packer=self.packer, ours=ours)
        self.mlp = FusedMLP(anatomy.mlp, plan, self.packer)
        cross = anatomy.cross_attention
        self.cross = None if cross is None else FusedAttention(cross, plan, packing=False, shared=shared, packer=self.packer)

    def give_back(self, by_rows: frozenset[str]) -> None:
        """Give parameters their own storages back, and weights of the names ``by_rows`` the strides that they had."""
        self.attention.unpack()
        by_columns(((f"{linear.name}.weight", linear.weight) for linear in self.anatomy.linears), by_rows)

    def may_pack_more(self) -> bool:
        """True where weights that were left as they are, because others held their memory, are held by nobody else any more."""
        return self.attention.may_join() or (self.packer is not None and self.packer.may_pack_more())

    def __call__(self, x: Tensor, call: AttentionCall, encoder: EncoderStates | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.anatomy.parallel:
            return self._parallel(x, call)
        if self.anatomy.norm_position is NormPosition.POST:
            return self._post_norm(x, call, encoder)
        return self._pre_norm(x, call, encoder)

    def _pre_norm(self, x: Tensor, call: AttentionCall, encoder: EncoderStates | None) -> Tensor:
        anatomy = self.anatomy
        assert anatomy.mlp_norm is not None
        normed = self._norm(anatomy.attention_norm, x)
        residual = normed if anatomy.residual_from_norm else x
        x = self.attention.attend_to_self(residual, normed, call, self.emit)
        if encoder is not None:
            assert self.cross is not None and anatomy.cross_norm is not None
            normed = self._norm(anatomy.cross_norm, x)
            x = self.cross.attend_to_encoder(x, normed, encoder.states, encoder.call, self.emit)
        normed = self._norm(anatomy.mlp_norm, x)
        residual = normed if anatomy.residual_from_norm else x
        return self.mlp.added_to(residual, normed, self.emit)

    def _post_norm(self, x: Tensor, call: AttentionCall, encoder: EncoderStates | None) -> Tensor:
        anatomy = self.anatomy
        assert anatomy.mlp_norm is not None
        x = self._norm(anatomy.attention_norm, self.attention.attend_to_self(x, x, call, self.emit))
        if encoder is not None:
            assert self.cross is not None and anatomy.cross_norm is not None
            attended = self.cross.attend_to_encoder(x, x, encoder.states, encoder.call, self.emit)
            x = self._norm(anatomy.cross_norm, attended)
        return self._norm(anatomy.mlp_norm, self.mlp.added_to(x, x, self.emit))

    def _parallel(self, x: Tensor, call: AttentionCall) -> Tensor:
        anatomy = self.anatomy
        normed = self._norm(anatomy.attention_norm, x)
        mlp_in = normed if anatomy.mlp_norm is None else self._norm(anatomy.mlp_norm, x)
        attended = self.attention.attend_to_self(x, normed, call, self.emit)
        return self.mlp.added_to(attended, mlp_in, self.emit)

    def _norm(self, norm: Norm, x: Tensor) -> Tensor:
        self.emit(f"{norm.name}:input", x)
        out = normalise(norm, x)
        self.emit(norm.name, out)
        return out
