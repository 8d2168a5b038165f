"""Where in a layer a fault lives: the stages, by the names that localisation gives them, at which it shows first."""

from __future__ import annotations

import dataclasses
from typing import Any

from policies.anatomy import MLP, Attention, LayerAnatomy, Norm
from policies.fused import attention as fused_attention

from ..evidence.stages import INPUT


def changed_places(honest: LayerAnatomy, wrong: LayerAnatomy) -> frozenset[str]:
    """Stages of the parts in which ``wrong``, made of ``honest``, differs; none where more than single parts differ."""
    places: set[str] = set()
    for name in _changed(honest, wrong):
        part, other = getattr(honest, name), getattr(wrong, name)
        if isinstance(part, Attention):
            places |= {part.out.name} if _changed(part, other) == ["out"] else attention_places(part)
        elif isinstance(part, MLP):
            places |= {part.down.name} if _changed(part, other) == ["down"] else _mlp_places(part)
        elif isinstance(part, Norm):
            places.add(part.name)
        else:
            return frozenset()
    return frozenset(places)


def computed_places(owner: Any, anatomy: LayerAnatomy) -> frozenset[str]:
    """Stages of what ``owner``, a class or module of the fused code, computes; none where that is a whole layer."""
    inside = owner is fused_attention or getattr(owner, "__module__", None) == fused_attention.__name__
    blocks = (anatomy.attention, anatomy.cross_attention) if inside else ()
    return frozenset(place for block in blocks if block is not None for place in (*attention_places(block), block.out.name))


def attention_places(block: Attention) -> frozenset[str]:
    """The projections to queries, keys and values, and the context that goes into the output projection."""
    return frozenset({*(linear.name for linear in block.qkv.linears), block.out.name + INPUT})


def _mlp_places(mlp: MLP) -> frozenset[str]:
    linears = (mlp.up, mlp.gate, mlp.gate_up)
    return frozenset({*(one.name for one in linears if one is not None), mlp.down.name + INPUT})


def _changed(honest: Any, wrong: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(honest)]
    return [name for name in names if getattr(honest, name) is not getattr(wrong, name)]
