"""``ParallelTransformerLayer``, the layer of Megatron-LM and Megatron-DeepSpeed before megatron-core.

The class is no library's: it was copied from project to project and changed on the way, so it is known by its name and
its parts, and those do not say everything. Above all they do not say how QKV rows are ordered:

- checkpoint version 2 (Megatron-LM since 2.0): for each head its query, key and value; with grouped queries, for each
  group its queries, its key and its value. Older checkpoints are brought into this order when they are loaded.
- checkpoint version 0 (Megatron-LM 1, where the module is called ``attention``): all queries, then all keys, then all
  values, heads in order within each.
- checkpoint version 1: elements of query, key and value alternate within a head. Refused.

So such a layer is asked: a small input goes through its own forward, and the order that reproduces the result is taken.
If none does, the layer computes something that this page does not know, and is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .anatomy import (
    MLP,
    Activation,
    ActivationKind,
    Attention,
    Causality,
    FusedQKV,
    LayerAnatomy,
    Linear,
    Norm,
    NormKind,
    NormPosition,
    QKVLayout,
)
from .calls import CallConvention, Returns
from .megatron import MegatronLayerPolicy, activation, bias_gelu, parallel_linear, plain_softmax

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS, _BATCH = 5, 2


class OlderMegatronLayerPolicy(MegatronLayerPolicy):
    """``MegatronLayerPolicy`` with the older layer's call: it returns the hidden states alone."""

    call = CallConvention(returns=Returns.TENSOR, cache=None, sequence_first=True, true_means_masked=True)


def read_parallel_layer(layer: Any) -> LayerAnatomy:
    """Describe the ``ParallelTransformerLayer`` behind ``layer`` (a ``Structure``). Raises ``UnsupportedLayer``."""
    if layer.has("inter_attention"):
        raise layer.refuse("cross-attention (inter_attention)")
    path = "self_attention" if layer.has("self_attention") else "attention"
    readings = [
        _anatomy(layer, path, layout, causality)
        for layout in (QKVLayout.INTERLEAVED, QKVLayout.BLOCKED)
        for causality in (Causality.NEVER, Causality.IF_NO_MASK)
    ]
    question = _Question(layer, readings[0].attention.out.weight)
    for reading in readings:
        if question.answered_by(reading):
            return reading
    raise layer.refuse("its own forward computes something else than its parts say")


class _Question:
    """A small input and what the layer itself makes of it, under a causal mask and under none."""

    def __init__(self, layer: Any, weight: Tensor) -> None:
        import torch

        if weight.is_meta:
            raise layer.refuse("parameters on the meta device, where a layer cannot be asked what it computes")
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(_TOKENS, _BATCH, weight.shape[0], generator=generator)
        self.hidden = hidden.to(weight.device, weight.dtype)
        self.allowed = torch.ones(1, 1, _TOKENS, _TOKENS, dtype=torch.bool, device=weight.device).tril()
        with _evaluating(layer.layer):
            try:
                self.masked = self._original(layer, ~self.allowed)
            except Exception as error:
                raise layer.refuse(f"its own forward fails on a small input: {error}") from error
            try:
                self.unmasked: Tensor | None = self._original(layer, None)
            except Exception:  # a layer that wants a mask says so in a way of its own
                self.unmasked = None

    def _original(self, layer: Any, mask: Tensor | None) -> Tensor:
        module = layer.layer
        forward = getattr(module, "_fused_original", type(module)).forward
        found = forward(module, self.hidden.clone(), mask)
        if getattr(found, "shape", None) != self.hidden.shape:
            raise TypeError(f"it returns a {type(found).__name__} and not the hidden states alone")
        answer: Tensor = found
        return answer

    def answered_by(self, reading: LayerAnatomy) -> bool:
        """Whether ``reading`` gives the layer's own answers, as far as its dtype tells."""
        import torch

        from .fused.attention import AttentionCall
        from .fused.transformer import FusedTransformerLayer

        core = FusedTransformerLayer(reading, packing=False)
        with torch.no_grad():
            for answer, mask in ((self.masked, self.allowed), (self.unmasked, None)):
                if answer is not None:
                    ours = core(self.hidden.transpose(0, 1), AttentionCall(mask=mask)).transpose(0, 1)
                    if not self._close(ours, answer):
                        return False
        return True

    def _close(self, ours: Tensor, answer: Tensor) -> bool:
        """Compared is what the layer adds to its input, so that a layer of small weights cannot hide behind it."""
        import torch

        added = (answer - self.hidden).abs().amax()
        allowed = torch.finfo(answer.dtype).eps ** 0.5 * added
        return bool(((ours - answer).abs().amax() <= allowed).item())


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode and without gradients; afterwards each part in the mode it was in."""
    import torch

    modes = [(one, one.training) for one in module.modules()]
    try:
        for one, _ in modes:
            one.training = False
        with torch.no_grad():
            yield
    finally:
        for one, mode in modes:
            one.training = mode


def _anatomy(layer: Any, path: str, layout: QKVLayout, causality: Causality) -> LayerAnatomy:
    return LayerAnatomy(
        attention=_attention(layer, path, layout, causality),
        mlp=MLP(
            up=_linear(layer, "mlp.dense_h_to_4h"),
            down=_linear(layer, "mlp.dense_4h_to_h"),
            activation=_activation(layer),
        ),
        attention_norm=_norm(layer, "input_layernorm"),
        mlp_norm=_norm(layer, "post_attention_layernorm"),
        norm_position=NormPosition.PRE,
        hidden_size=layer.get(f"{path}.dense.weight").shape[0],
        residual_from_norm=bool(layer.get("apply_residual_connection_post_layernorm")),
    )


def _attention(layer: Any, path: str, layout: QKVLayout, causality: Causality) -> Attention:
    own = layer.get(path)
    core = own.core_attention if layer.has(f"{path}.core_attention") else own
    softmax = plain_softmax(layer, f"{path}{'' if core is own else '.core_attention'}.scale_mask_softmax")
    heads = own.num_attention_heads_per_partition
    return Attention(
        qkv=FusedQKV(linear=_linear(layer, f"{path}.query_key_value", adds=True), layout=layout),
        out=_linear(layer, f"{path}.dense"),
        heads=heads,
        kv_heads=getattr(own, "num_query_groups_per_partition", heads),
        head_size=own.hidden_size_per_attention_head,
        # Scores are divided by a factor that may hold the layer's number, which the softmax then takes out again.
        scale=(1.0 if softmax.scale is None else softmax.scale) / float(core.norm_factor),
        causality=causality,
        module=own,
        even_if_blind=True,
    )


def _linear(layer: Any, path: str, *, adds: bool = False) -> Linear:
    """A parallel linear of whatever module: its name and its parts are what copies have in common."""
    kind = type(layer.get(path))
    if kind.__name__ not in ("ColumnParallelLinear", "RowParallelLinear"):
        raise layer.refuse(f"{path} is a {kind.__name__}, not a ColumnParallelLinear or RowParallelLinear")
    return parallel_linear(layer, path, f"{kind.__module__}:{kind.__qualname__}", adds=adds)


def _norm(layer: Any, path: str) -> Norm:
    found = layer.get(path)
    if type(found).__name__ != "MixedFusedLayerNorm":
        norm: Norm = layer.norm(path)
        return norm
    centred = getattr(found, "apply_layernorm_1p", False)
    return Norm(
        name=path,
        kind=NormKind.LAYER,
        weight=found.weight,
        bias=found.bias,
        eps=found.eps,
        gain_offset=1.0 if centred else 0.0,
    )


def _activation(layer: Any) -> Activation:
    """A gated MLP of this age halves its input inside the activation, so that up and gate stay one projection here."""
    if getattr(layer.get("mlp"), "bias_gelu_fusion", False):
        return Activation(kind=ActivationKind.OWN, function=bias_gelu)
    return activation(layer, "mlp.activation_func")
