"""``ParallelTransformerLayer``, the layer of Megatron-LM and Megatron-DeepSpeed before megatron-core.

The class is no library's: it was copied from project to project and changed on the way, so it is known by its name and
its parts, and those do not say everything. Above all they do not say how QKV rows are ordered:

- checkpoint version 2 (Megatron-LM since 2.0): for each head its query, key and value; with grouped queries, for each
  group its queries, its key and its value. Older checkpoints are brought into this order when they are loaded.
- checkpoint version 0 (Megatron-LM 1, where the module is called ``attention``): all queries, then all keys, then all
  values, heads in order within each.
- checkpoint version 1: elements of query, key and value alternate within a head. Refused.

So such a layer is asked: a small input goes through its own forward, and the reading that reproduces the result is
taken. If none does, the layer computes something that this page does not know, and is refused.
"""

from __future__ import annotations

import contextlib
import math
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
from .base import AnatomyPolicy
from .calls import CallConvention, Returns
from .megatron_parts import activation, no_kernel_without_mask, parallel_linear

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS, _BATCH = 5, 2


class OlderMegatronLayerPolicy(AnatomyPolicy):
    """What ``MegatronLayerPolicy`` hands older layers to. They return the hidden states alone."""

    layer_classes = ("*:ParallelTransformerLayer",)
    call = CallConvention(returns=Returns.TENSOR, sequence_first=True, true_means_masked=True)

    @classmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        if layer.has("inter_attention"):
            raise layer.refuse("cross-attention (inter_attention)")
        path = "self_attention" if layer.has("self_attention") else "attention"
        readings = [
            _anatomy(layer, path, layout, causality, activation)
            for layout in (QKVLayout.INTERLEAVED, QKVLayout.BLOCKED)
            for causality in (Causality.NEVER, Causality.IF_NO_MASK)
            for activation in _activations(layer)
        ]
        layer.heads_agree(readings[0])
        question = _Question(layer, readings[0].attention.out.weight)
        for reading in readings:
            if question.answered_by(reading):
                return reading
        raise layer.refuse("its own forward computes something else than its parts say")


class _Question:
    """A small input, and what the layer itself makes of it under a mask and under none.

    One token varies little, so that a norm's eps shows, and one query may attend nowhere.
    """

    def __init__(self, layer: Any, weight: Tensor) -> None:
        import torch

        if weight.is_meta:
            raise layer.refuse("parameters on the meta device, where a layer cannot be asked what it computes")
        hidden = torch.randn(_TOKENS, _BATCH, weight.shape[0], generator=torch.Generator().manual_seed(0))
        hidden[1] *= 0.01
        self.hidden = hidden.to(weight.device, weight.dtype)
        self.allowed = torch.ones(_BATCH, 1, _TOKENS, _TOKENS, dtype=torch.bool, device=weight.device).tril()
        self.allowed[0, :, 2] = False
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
        """Compared is what the layer adds to its input, so that a layer of small weights cannot hide behind it. A query
        that attends nowhere may have no result of its own."""
        import torch

        known = answer.isfinite()
        added = (answer - self.hidden)[known]
        if not added.numel():
            return False
        allowed = torch.finfo(answer.dtype).eps ** 0.5 * added.abs().amax()
        return bool(((ours - answer)[known].abs().amax() <= allowed).item())


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


def _anatomy(layer: Any, path: str, layout: QKVLayout, causality: Causality, activation: Activation) -> LayerAnatomy:
    layer.get("mlp")  # its class may be anybody's: the layer is asked what it computes
    return LayerAnatomy(
        attention=_attention(layer, path, layout, causality),
        mlp=MLP(
            up=_linear(layer, "mlp.dense_h_to_4h"),
            down=_linear(layer, "mlp.dense_4h_to_h"),
            activation=activation,
        ),
        attention_norm=_norm(layer, "input_layernorm"),
        mlp_norm=_norm(layer, "post_attention_layernorm"),
        norm_position=NormPosition.PRE,
        hidden_size=layer.get(f"{path}.dense.weight").shape[0],
        residual_from_norm=bool(getattr(layer.layer, "apply_residual_connection_post_layernorm", False)),
    )


def _attention(layer: Any, path: str, layout: QKVLayout, causality: Causality) -> Attention:
    own = layer.get(path)
    out = _linear(layer, f"{path}.dense")
    qkv = _linear(layer, f"{path}.query_key_value", adds=True)
    heads = getattr(own, "num_attention_heads_per_partition", None) or layer.get(f"{path}.num_attention_heads")
    head_size = out.features[-1] // heads
    if not head_size:
        raise layer.refuse(f"{heads} heads in {out.features[-1]} features")
    return Attention(
        qkv=FusedQKV(linear=qkv, layout=layout),
        out=out,
        heads=heads,
        kv_heads=(qkv.weight.shape[0] // head_size - heads) // 2,
        head_size=head_size,
        scale=_scale(layer, path, head_size),
        causality=causality,
        module=own,
        even_if_blind=True,
    )


def _scale(layer: Any, path: str, head_size: int) -> float:
    """Scores are divided by a factor that may hold the layer's number, which the softmax then takes out again."""
    within = f"{path}.core_attention" if layer.has(f"{path}.core_attention") else path
    core, softmax = layer.get(within), None
    if layer.has(f"{within}.scale_mask_softmax"):
        softmax = layer.get(f"{within}.scale_mask_softmax")
    no_kernel_without_mask(layer, softmax)
    return float(getattr(softmax, "scale", None) or 1.0) / float(getattr(core, "norm_factor", math.sqrt(head_size)))


def _linear(layer: Any, path: str, *, adds: bool = False) -> Linear:
    """A parallel linear of whatever module: its name and its parts are what copies have in common. Or a plain one."""
    kind = type(layer.get(path))
    if kind.__name__ in ("ColumnParallelLinear", "RowParallelLinear"):
        return parallel_linear(layer, path, f"{kind.__module__}:{kind.__qualname__}", adds=adds)
    linear: Linear = layer.linear(path)
    return linear


def _norm(layer: Any, path: str) -> Norm:
    """torch's layer norm, or a fused one with the same parts; with ``apply_layernorm_1p`` gains are stored less one."""
    found = layer.get(path)
    fused = type(found).__name__.endswith("LayerNorm") and type(found).__module__ != "torch.nn.modules.normalization"
    if not fused:
        norm: Norm = layer.norm(path)
        return norm
    return Norm(
        name=path,
        kind=NormKind.LAYER,
        weight=layer.get(f"{path}.weight"),
        bias=layer.get(f"{path}.bias"),
        eps=layer.get(f"{path}.eps"),
        gain_offset=1.0 if getattr(found, "apply_layernorm_1p", False) else 0.0,
    )


def _activations(layer: Any) -> tuple[Activation, ...]:
    """What the MLP may apply. A gated MLP of this age halves its input inside, so up and gate stay one projection."""
    from .fused.activations import gelu_tanh_short

    fused = Activation(kind=ActivationKind.GELU_TANH_SHORT, function=gelu_tanh_short)
    if not layer.has("mlp.activation_func"):
        from torch.nn import functional as F  # noqa: N812

        return fused, Activation(kind=ActivationKind.GELU, function=F.gelu)
    return (fused,) if getattr(layer.get("mlp"), "bias_gelu_fusion", False) else (activation(layer, "mlp.activation_func"),)
