"""Attention of diffusion models: one projection for query, key and value, or for key and value, and one SDPA call.

The projections' own parameters become views of the packed weight (``linear.pack``), so nothing is held twice and
updates in place are seen. Whatever the fused computation does not cover (other processors, adapters, training) runs the
original's own forward and is counted.

Shapes: B batch, T queries, S keys, C channels, H heads, E head size; images are (B, C, Y, X).
"""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor, nn

from ..anatomy import Linear
from ..plans import Plan
from ..structure import overridden
from ..swap import qualified_name
from .linear import Projection, can_pack, held_by_nobody_else, pack
from .saved import SavedApart
from .sdpa import scaled_dot_product_attention
from .swapped import Swapped, apply, differentiated, is_plain, linear
from .transforms import compiling, lasting, not_plain
from .watch import inner_hooks

_SDPA = "diffusers.models.attention_processor:AttnProcessor2_0"
_EAGER = "diffusers.models.attention_processor:AttnProcessor"


class PackedProjections:
    """The packed weights of one attention. ``whole`` has the rows of query (where it reads the same input), key,
    value."""

    def __init__(self, linears: tuple[Linear, ...], plan: Plan) -> None:
        self.linears = linears
        self.whole = pack(linears, plan)
        self.rows = [one.weight.shape[0] for one in linears]
        query = sum(self.rows[:-2])
        bias = self.whole.bias
        self.key_value = Projection("key and value", self.whole.weight[query:], None if bias is None else bias[query:])
        self._addresses = [(one, one.data_ptr()) for linear in linears for one in linear.parameters.values()]

    def stale(self, attention: Any) -> bool:
        """True where a parameter was exchanged, or has another storage."""
        return self._exchanged(attention) or any(one.data_ptr() != at for one, at in self._addresses)

    def moved(self, attention: Any) -> bool:
        """True where parameters are what they were, and have another storage."""
        return not self._exchanged(attention) and self.stale(attention)

    def _exchanged(self, attention: Any) -> bool:
        names = ("to_q", "to_k", "to_v")[-len(self.linears) :]
        known = [one for one, _ in self._addresses]
        now = [one for name in names for one in getattr(attention, name)._parameters.values() if one is not None]
        return len(now) != len(known) or not all(map(is_, now, known))

    def give_back(self) -> None:
        """Give each parameter a storage of its own again; one that was given another since has it."""
        for parameter, at in self._addresses:
            if parameter.data_ptr() == at:
                parameter.data = parameter.data.clone()


class FusedAttention(SavedApart, Swapped):
    """Mixin before diffusers' ``Attention``."""

    _fused_transient = ("_fused_packed",)
    _fused_name: str = ""
    _fused_packed: PackedProjections | None = None
    _fused_moves: bool = False
    """Whether somebody gives the projections other memory within a call, as who keeps weights on the host until they are needed.
    Packed anew each time, they would be on the device for good."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        """As the original's. ``temb`` matters to a spatial norm only, and no fused attention has one."""
        reason = self._fused_why_not(hidden_states, encoder_hidden_states, cross_attention_kwargs)
        if reason is None:
            return self._fused_attend(hidden_states, encoder_hidden_states, attention_mask)
        if not compiling():
            self._fused_state.fallbacks[f"attention: {reason}"] += 1
        result: Tensor = super().forward(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **cross_attention_kwargs,
        )
        return result

    def _fused_why_not(self, hidden: Tensor, encoder: Any, extra: dict[str, Any]) -> str | None:
        strange = not_plain(hidden)
        if strange is not None:
            return strange
        own = None if compiling() else overridden(self)
        if own is not None:
            return f"a {own} of its own"
        processor = self.processor
        if qualified_name(type(processor)) not in (_SDPA, _EAGER):
            return f"processor {type(processor).__name__}"
        if self.training:
            return "training mode"
        unknown = extra.keys() - {"temb"}
        if unknown:
            return f"argument {min(unknown)}"
        if self.spatial_norm is not None or self.to_out is None or self.add_k_proj is not None:
            return "a kind with spatial norm, added or no output projections"
        if self.inner_kv_dim != self.inner_dim:
            return "grouped heads"
        if self.norm_q is not None or self.norm_k is not None:
            return "norms of query or key"
        if hidden.dim() not in (3, 4) or not (encoder is None or isinstance(encoder, Tensor)):
            return "inputs that are not images or token sequences"
        if encoder is not None and (encoder.dim() != 3 or encoder.shape[0] != hidden.shape[0]):
            return "encoder states of another batch"
        # The original gives its norm images laid out as sequences, which a hook sees.
        return inner_hooks([self.group_norm]) if hidden.dim() == 4 and self.group_norm is not None else None

    def fused_bind(self) -> None:
        """Pack the projections, where they may be. Their storages change, their values do not."""
        if self._fused_packed is not None and not self._fused_packed.stale(self):
            return
        self.fused_unbind()
        if self._fused_moves:
            return
        modules = {part: getattr(self, part) for part in ("to_q", "to_k", "to_v")}
        if not all(type(one) is nn.Linear and one.weight.is_contiguous() for one in modules.values()):
            return
        if self.to_q.in_features != self.to_k.in_features:
            del modules["to_q"]
        linears = tuple(
            Linear(name=f"{self._fused_name}.{part}", weight=one.weight, bias=one.bias) for part, one in modules.items()
        )
        if can_pack(linears, self._fused_state.shared) and held_by_nobody_else(linears):
            self._fused_packed = PackedProjections(linears, self._fused_state.execution)

    def fused_unbind(self) -> None:
        packed = self.__dict__.pop("_fused_packed", None)
        if packed is not None:
            with lasting():
                packed.give_back()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moving gives each parameter a storage of its own, but where it is there already; the packed weight left behind would be
        # a second copy.
        self.fused_unbind()
        return super()._apply(fn, recurse)

    def _fused_attend(self, hidden: Tensor, encoder: Tensor | None, mask: Tensor | None) -> Tensor:
        residual, image = hidden, hidden.shape if hidden.dim() == 4 else None
        if image is not None:
            normed = hidden if self.group_norm is None else self.group_norm(hidden)
            hidden = normed.flatten(2).transpose(1, 2)
        elif self.group_norm is not None:
            hidden = self.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        batch, source = hidden.shape[0], (hidden if encoder is None else encoder).shape[1]
        bias = None if mask is None else self._fused_mask(mask, source, batch)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self._fused_project(hidden, encoder)
        )
        eager = qualified_name(type(self.processor)) == _EAGER
        context = scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=self.scale if eager else None, eager=eager, wide=self.upcast_attention
        )
        result = apply(self.to_out[0], context.transpose(1, 2).flatten(2).to(query.dtype), self._fused_state.execution)
        result = self.to_out[1](result)
        if image is not None:
            result = result.transpose(1, 2).reshape(image)
        if self.residual_connection:
            result = result + residual
        return result if self.rescale_output_factor == 1.0 else result / self.rescale_output_factor

    def _fused_mask(self, mask: Tensor, source: int, batch: int) -> Tensor:
        """An additive mask (B, 1 or T, S) as (B, 1, 1 or T, S); any other shape as the original makes of it."""
        if mask.dim() == 3 and mask.shape[0] == batch and mask.shape[-1] == source:
            return mask.unsqueeze(1)
        mask = self.prepare_attention_mask(mask, source, batch)
        return mask.view(batch, self.heads, -1, mask.shape[-1])

    def _fused_project(self, hidden: Tensor, encoder: Tensor | None) -> tuple[Tensor, ...]:
        """Query (B, T, H * E), key and value (B, S, H * E)."""
        if encoder is not None and self.norm_cross is not None:
            encoder = self.norm_encoder_hidden_states(encoder)
        packed, plan = self._fused_usable(), self._fused_state.execution
        states = hidden if encoder is None else encoder
        if packed is None:
            return apply(self.to_q, hidden, plan), apply(self.to_k, states, plan), apply(self.to_v, states, plan)
        if encoder is None and len(packed.rows) == 3:
            return linear(hidden, packed.whole.weight, packed.whole.bias, plan).split(packed.rows, dim=-1)
        pair = packed.key_value
        key, value = linear(states, pair.weight, pair.bias, plan).split(packed.rows[-2:], dim=-1)
        return apply(self.to_q, hidden, plan), key, value

    def _fused_usable(self) -> PackedProjections | None:
        """The packed weights, if using them is the same as calling the three layers: no hooks, no adapters, no gradient
        wanted for the parameters that the packed weight stands for."""
        modules = (self.to_q, self.to_k, self.to_v)
        if not all(is_plain(one, nn.Linear) for one in modules):
            return None
        if differentiated(*(one for module in modules for one in (module.weight, module.bias))):
            return None
        if compiling():
            return None  # what is compiled would not ask again whether it is stale
        if self._fused_packed is not None and self._fused_packed.stale(self):
            self.__dict__["_fused_moves"] = self._fused_packed.moved(self)
            self.fused_unbind()
        return self._fused_packed
