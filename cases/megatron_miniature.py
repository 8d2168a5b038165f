"""``ParallelTransformerLayer`` in miniature: the parts, names and conventions of the layer that Megatron-LM and its
forks had before megatron-core, on one process.

What copies of the class have in common is here: linears that hand back a bias instead of adding it, hidden states with
the sequence first, scores divided by a factor that may hold the layer's number and a softmax that multiplies by it
again, masks that overwrite scores with -10000. What they differ in is an option.

Shapes: T tokens, B batch, D hidden size, H heads, K query groups, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class AttnMaskType(Enum):
    padding = 1
    causal = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """``version`` is the checkpoint version that the QKV rows follow: 2 interleaved, 1 alternating, 0 blocked."""

    hidden: int
    heads: int
    groups: int
    head_size: int
    ffn: int
    activation: Callable[[Tensor], Tensor]
    version: int = 2
    eps: float = 1e-5
    bias: bool = True
    gated: bool = False
    bias_gelu_fusion: bool = False
    layer_scaling: bool = False
    residual_after_norm: bool = False
    core_attention: bool = True
    centred_norms: bool = False
    causal_without_mask: bool = False


class ColumnParallelLinear(nn.Module):
    """(..., in) -> (..., out) and the bias, which is added only unless ``skip_bias_add``."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, skip_bias_add: bool) -> None:
        super().__init__()
        self.output_size = self.output_size_per_partition = outputs
        self.skip_bias_add = skip_bias_add
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.skip_bias_add:
            return F.linear(x, self.weight), self.bias
        return F.linear(x, self.weight, self.bias), None


class RowParallelLinear(ColumnParallelLinear):
    """As above; what is split over processes is the input."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias, skip_bias_add=True)
        self.input_size = self.input_size_per_partition = inputs


class MixedFusedLayerNorm(nn.Module):
    """Layer norm; ``apply_layernorm_1p`` says that gains are stored less one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(size)), nn.Parameter(torch.empty(size))
        self.eps = eps
        self.apply_layernorm_1p = True

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight + 1, self.bias, self.eps)


def attention_mask_func(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, -10000.0)


class FusedScaleMaskSoftmax(nn.Module):
    """Softmax over the last dimension of (B, H, T, S) scores, after scaling and masking."""

    def __init__(self, options: Options, scale: int | None) -> None:
        super().__init__()
        self.scale = scale
        self.mask_func = attention_mask_func
        self.scaled_masked_softmax_fusion = self.input_in_float16 = False
        self.causal_without_mask = options.causal_without_mask
        self.attn_mask_type = AttnMaskType.causal if options.causal_without_mask else AttnMaskType.padding

    def forward(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if self.scale is not None:
            scores = scores * self.scale
        if mask is None and self.causal_without_mask:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return torch.softmax(scores if mask is None else self.mask_func(scores, mask), dim=-1)


class CoreAttention(nn.Module):
    """What ``attend`` needs to know."""

    def __init__(self, options: Options, layer_number: int) -> None:
        super().__init__()
        number = layer_number if options.layer_scaling else None
        self.norm_factor = math.sqrt(options.head_size) * (number or 1)
        self.scale_mask_softmax = FusedScaleMaskSoftmax(options, number)
        self.attention_dropout = nn.Dropout(0.1)


def attend(core: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scores, softmax and mixture of values: (T, B, H, E) three times -> (T, B, H * E)."""
    scores = torch.einsum("tbhe,sbhe->bhts", query, key) / core.norm_factor
    mixture = core.attention_dropout(core.scale_mask_softmax(scores, mask))
    return torch.einsum("bhts,sbhe->tbhe", mixture, value).flatten(-2)


class ParallelAttention(nn.Module):
    """Self-attention. Older copies compute scores themselves; later ones have a ``core_attention`` for it."""

    def __init__(self, options: Options, layer_number: int) -> None:
        super().__init__()
        core = CoreAttention(options, layer_number)
        if options.core_attention:
            self.core_attention = core
        else:
            self.norm_factor, self.scale_mask_softmax = core.norm_factor, core.scale_mask_softmax
            self.attention_dropout = core.attention_dropout
        self.version = options.version
        self.num_attention_heads_per_partition = options.heads
        self.hidden_size_per_attention_head = options.head_size
        self.num_query_groups_per_partition = options.groups
        rows = (options.heads + 2 * options.groups) * options.head_size
        self.query_key_value = ColumnParallelLinear(options.hidden, rows, bias=options.bias, skip_bias_add=False)
        self.dense = RowParallelLinear(options.heads * options.head_size, options.hidden, bias=options.bias)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Any:
        query, key, value = self._split(self.query_key_value(hidden)[0])
        core = self.core_attention if hasattr(self, "core_attention") else self
        return self.dense(attend(core, query, key, value, mask))

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, B, rows) -> queries, keys and values, each (T, B, H, E)."""
        groups, size = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        share = self.num_attention_heads_per_partition // groups
        if self.version == 0:
            heads = mixed.unflatten(-1, (-1, size))
            query, key, value = heads.split((share * groups, groups, groups), dim=2)
        elif self.version == 1:
            query, key, value = mixed.unflatten(-1, (groups, size, 3)).unbind(-1)
        else:
            grouped = mixed.unflatten(-1, (groups, share + 2, size))
            query, key, value = grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]
        return query, key.repeat_interleave(share, dim=2), value.repeat_interleave(share, dim=2)


class ParallelMLP(nn.Module):
    """Gated where the first projection is twice as wide: the activation then halves it, gate first."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width = options.ffn * (2 if options.gated else 1)
        self.dense_h_to_4h = ColumnParallelLinear(options.hidden, width, bias=options.bias, skip_bias_add=True)
        self.dense_4h_to_h = RowParallelLinear(options.ffn, options.hidden, bias=options.bias)
        self.bias_gelu_fusion = options.bias_gelu_fusion
        self.activation_func = _gated(options.activation) if options.gated else options.activation

    def forward(self, hidden: Tensor) -> Any:
        inner, bias = self.dense_h_to_4h(hidden)
        inner = inner if bias is None else inner + bias
        return self.dense_4h_to_h(_bias_gelu(inner) if self.bias_gelu_fusion else self.activation_func(inner))


def _gated(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def halve(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return function(gate) * up

    return halve


def _bias_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


class ParallelTransformerLayer(nn.Module):
    """(T, B, D) -> (T, B, D)."""

    def __init__(self, options: Options, layer_number: int) -> None:
        super().__init__()
        norm = MixedFusedLayerNorm if options.centred_norms else nn.LayerNorm
        self.apply_residual_connection_post_layernorm = options.residual_after_norm
        self.input_layernorm = norm(options.hidden, options.eps)
        attention = ParallelAttention(options, layer_number)
        # Megatron-LM 1, of the blocked order, called it so.
        setattr(self, "attention" if options.version == 0 else "self_attention", attention)
        self.hidden_dropout = 0.1
        self.post_attention_layernorm = norm(options.hidden, options.eps)
        self.mlp = ParallelMLP(options)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        encoder_output: Tensor | None = None,
        enc_dec_attn_mask: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        attention: Any = self.self_attention if hasattr(self, "self_attention") else self.attention
        normed = self.input_layernorm(hidden_states)
        residual = normed if self.apply_residual_connection_post_layernorm else hidden_states
        hidden = self._join(attention(normed, attention_mask), residual)
        normed = self.post_attention_layernorm(hidden)
        residual = normed if self.apply_residual_connection_post_layernorm else hidden
        return self._join(self.mlp(normed), residual)

    def _join(self, x_and_bias: tuple[Tensor, Tensor | None], residual: Tensor) -> Tensor:
        x, bias = x_and_bias
        out = x if bias is None else x + bias
        return residual + F.dropout(out, self.hidden_dropout, self.training)
