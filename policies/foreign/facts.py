"""What a foreign policy can be asked about a layer, flat, so that one fact can be taken from it and the next from us.

A layer's description is taken apart into ``Parts``, each fact is a few of them, and any mixture of two readings can be
put together again into an anatomy. So a reading is judged fact by fact, and a wrong one is told from a right one.

Weights lie as they are stored; ``up_weight`` holds the gate's rows behind the others where the MLP is gated, which is
DeepSpeed's order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..anatomy import MLP, FusedQKV, LayerAnatomy, Linear, Norm, NormKind, NormPosition, QKVLayout, SplitQKV
from ..base import stack

if TYPE_CHECKING:
    from torch import Tensor

Parts = dict[str, Any]

FACTS: dict[str, tuple[str, ...]] = {
    "whole layer": ("crossing",),
    "attention weights": ("qkv_weight", "out_weight"),
    "attention biases": ("qkv_bias", "out_bias"),
    "MLP weights": ("up_weight", "down_weight"),
    "MLP biases": ("up_bias", "down_bias"),
    "norms": ("near_weight", "near_bias", "far_weight", "far_bias", "second_norm"),
    "norm position": ("pre_norm",),
    "norm kind": ("norm_kind", "gain_offset"),
    "eps": ("near_eps", "far_eps"),
    "heads": ("hidden", "heads", "head_size"),
    "grouped heads": ("kv_heads",),
    "inner size": ("inner",),
    "QKV order": ("interleaved",),
    "weight layout": ("transposed",),
    "scale": ("scale",),
    "activation": ("activation", "gated"),
    "GELU form": ("gelu_is_tanh",),
    "residual wiring": ("parallel",),
    "window": ("window",),
}
"""Each fact, and the parts that say it. "whole layer": nothing in the layer is left out.

In a foreign reading ``kv_heads`` None means as many as query heads, ``scale`` None one over the root of the head size and
``inner`` None four times the hidden size.
"""


class Contradiction(Exception):
    """A reading that no layer can be built from. ``fact`` is what is at fault, as far as that can be told."""

    def __init__(self, fact: str, message: str) -> None:
        super().__init__(message)
        self.fact = fact


def take_apart(anatomy: LayerAnatomy) -> Parts:
    """Our own description, as parts."""
    attention, mlp = anatomy.attention, anatomy.mlp
    qkv = attention.qkv
    assert isinstance(qkv, SplitQKV | FusedQKV)
    qkv_weight, qkv_bias = stack(qkv.linears)
    up_weight, up_bias = stack(_ups(mlp))
    near, far = _near_and_far(anatomy)
    return {
        "crossing": anatomy.cross_attention is not None,
        "qkv_weight": qkv_weight,
        "qkv_bias": qkv_bias,
        "out_weight": attention.out.weight,
        "out_bias": attention.out.bias,
        "up_weight": up_weight,
        "up_bias": up_bias,
        "down_weight": mlp.down.weight,
        "down_bias": mlp.down.bias,
        "near_weight": None if near is None else near.weight,
        "near_bias": None if near is None else near.bias,
        "near_eps": far.eps if near is None else near.eps,
        "second_norm": near is not None,
        "far_weight": far.weight,
        "far_bias": far.bias,
        "far_eps": far.eps,
        "pre_norm": anatomy.norm_position is NormPosition.PRE,
        "norm_kind": far.kind,
        "gain_offset": far.gain_offset,
        "hidden": anatomy.hidden_size,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_size": attention.head_size,
        "inner": mlp.down.weight_out_in.shape[1],
        "interleaved": isinstance(qkv, FusedQKV) and qkv.layout is QKVLayout.INTERLEAVED,
        "transposed": attention.out.transposed,
        "scale": attention.scale,
        "activation": mlp.activation,
        "gated": mlp.gate is not None,
        "gelu_is_tanh": None,
        "parallel": anatomy.parallel,
        "window": attention.window,
    }


def put_together(parts: Parts, own: LayerAnatomy) -> LayerAnatomy:
    """The layer that ``parts`` describe; what they cannot say (positions, causality, the cache ...) is as in ``own``.

    Raises ``Contradiction``.
    """
    parts = _completed(parts)
    _consistent(parts, own)
    turned = parts["transposed"]
    layout = QKVLayout.INTERLEAVED if parts["interleaved"] else QKVLayout.BLOCKED
    qkv = Linear(name="qkv", weight=parts["qkv_weight"], bias=parts["qkv_bias"], transposed=turned)
    attention = replace(
        own.attention,
        qkv=FusedQKV(linear=qkv, layout=layout),
        out=Linear(name="out", weight=parts["out_weight"], bias=parts["out_bias"], transposed=turned),
        heads=parts["heads"],
        kv_heads=parts["kv_heads"],
        head_size=parts["head_size"],
        scale=parts["scale"],
        window=parts["window"],
    )
    near, far = _norm(parts, own, "near") if parts["second_norm"] else None, _norm(parts, own, "far")
    first, second = (far, near) if parts["pre_norm"] else (near, far)
    if first is None or (second is None and not parts["parallel"]):
        raise Contradiction("norms", "says that the layer has one norm only, and needs two")
    return replace(
        own,
        attention=attention,
        mlp=_mlp(parts),
        attention_norm=first,
        mlp_norm=second,
        norm_position=NormPosition.PRE if parts["pre_norm"] else NormPosition.POST,
        hidden_size=parts["hidden"],
        parallel=parts["parallel"],
    )


def _completed(parts: Parts) -> Parts:
    kv_heads = parts["heads"] if parts["kv_heads"] is None else parts["kv_heads"]
    scale = parts["head_size"] ** -0.5 if parts["scale"] is None else parts["scale"]
    return parts | {"kv_heads": kv_heads, "scale": scale}


def _consistent(parts: Parts, own: LayerAnatomy) -> None:
    if own.cross_attention is not None and not parts["crossing"]:
        raise Contradiction("whole layer", "leaves out the layer's cross-attention")
    rows = own.mlp.down.weight_out_in.shape[1]
    if parts["inner"] is None and rows != 4 * parts["hidden"]:
        raise Contradiction(
            "inner size",
            f"takes every MLP for 4 x hidden ({4 * parts['hidden']}) wide, this one is {rows}: of a wider one its injection "
            "keeps the first 4 x hidden columns, at a narrower one it stops",
        )
    if parts["inner"] not in (None, rows):
        raise Contradiction("inner size", f"says that the MLP is {parts['inner']} wide, this one is {rows}")
    head_rows = (parts["heads"] + 2 * parts["kv_heads"]) * parts["head_size"]
    rows = parts["qkv_weight"].shape[1 if parts["transposed"] else 0]
    if rows != head_rows:
        same_heads = (parts["heads"], parts["head_size"]) == (own.attention.heads, own.attention.head_size)
        said = f"{parts['kv_heads']} key and value heads" if same_heads else f"{parts['heads']} heads of {parts['head_size']}"
        raise Contradiction(
            "grouped heads" if same_heads else "heads",
            f"says {said}, which makes {head_rows} rows of query, key and value; the weight has {rows}",
        )


def _ups(mlp: MLP) -> tuple[Linear, ...]:
    assert mlp.gate_up is None and mlp.up is not None
    return (mlp.up,) if mlp.gate is None else (mlp.up, mlp.gate)


def _near_and_far(anatomy: LayerAnatomy) -> tuple[Norm | None, Norm]:
    """The norm at the attention's output, and the other one."""
    if anatomy.norm_position is NormPosition.PRE:
        return anatomy.mlp_norm, anatomy.attention_norm
    assert anatomy.mlp_norm is not None
    return anatomy.attention_norm, anatomy.mlp_norm


def _norm(parts: Parts, own: LayerAnatomy, which: str) -> Norm:
    return replace(
        own.attention_norm,
        name=f"{which} norm",
        kind=parts["norm_kind"],
        weight=parts[f"{which}_weight"],
        bias=parts[f"{which}_bias"] if parts["norm_kind"] is NormKind.LAYER else None,
        eps=parts[f"{which}_eps"],
        gain_offset=parts["gain_offset"],
    )


def _mlp(parts: Parts) -> MLP:
    turned = parts["transposed"]
    down = Linear(name="down", weight=parts["down_weight"], bias=parts["down_bias"], transposed=turned)
    up = Linear(name="up", weight=parts["up_weight"], bias=parts["up_bias"], transposed=turned)
    if not parts["gated"]:
        return MLP(up=up, down=down, activation=parts["activation"])
    first, second = (_half(up, which) for which in (0, 1))
    return MLP(up=first, gate=second, down=down, activation=parts["activation"])


def _half(linear: Linear, which: int) -> Linear:
    def half(tensor: Tensor | None, dim: int) -> Any:
        return None if tensor is None else tensor.chunk(2, dim=dim)[which]

    weight = half(linear.weight, 1 if linear.transposed else 0)
    return replace(linear, name=("up", "gate")[which], weight=weight, bias=half(linear.bias, 0))
