"""Faults of foreign policies in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from policies.foreign.deepspeed_names import Loaded

from ..case import Axis, Example
from .readings import Fault, Proof
from .report import Defect

ASSUMED = "takes every MLP for"
"""How a fault of size begins that shows at any example whose MLP is not four times as wide."""
MOST_NAMED = 4
"""Values and names that are listed before it says "and so many more"."""


def example_words(example: Example, axes: Iterable[Axis]) -> str:
    off = [axis.name for axis in axes if example[axis.name] != axis.simplest]
    return ", ".join(f"{name}={example[name]}" for name in off) or "the simplest example"


def fault_words(fault: Fault, said: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What is wrong, in one sentence; ``said`` and ``own`` are the parts as the policy and as we read them."""
    if fault.error is None:
        return _joined(fault.message, fault)
    fact = fault.facts[0] if fault.facts else "reading"
    return _joined(f"{fact}: {_told(fact, said, own)}, relative error {fault.error:.1e}", fault)


def _joined(text: str, fault: Fault) -> str:
    if fault.axis is None:
        return text
    values = some(str(one) for one in fault.values)
    return f"{text} (at {fault.axis} = {values})"


def _told(fact: str, said: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    def scale(value: float | None) -> str:
        return "one over the root of the head size" if value is None else f"{value:.3g}"

    def name(activation: Any) -> str:
        return getattr(activation.function, "__name__", type(activation.function).__name__)

    match fact:
        case "activation":
            return f"says {name(said['activation'])}, the layer has {name(own['activation'])}"
        case "GELU form":
            return f"says GELU, which its kernels take for the tanh form; the layer has {name(own['activation'])}"
        case "norm position":
            corrected = said.get("container_pre_norm") == own["pre_norm"]
            then = " (its container takes that from the model's configuration instead, and is right)" if corrected else ""
            return f"says {_pre(said['pre_norm'])}, the layer is {_pre(own['pre_norm'])}{then}"
        case "eps":
            return f"gives one eps for both norms, {said['near_eps']:g}; the layer has {own['near_eps']:g} and {own['far_eps']:g}"
        case "scale":
            return f"says {scale(said['scale'])}, the layer has {own['scale']:.3g}"
        case "residual wiring":
            return f"its container says {_parallel(said['parallel'])}, the layer is {_parallel(own['parallel'])}"
        case "QKV order":
            return f"says {_order(said['interleaved'])}, the layer has {_order(own['interleaved'])}"
        case "norms" if said["near_weight"] is own["far_weight"] is not None:
            return "gives the two the other way round"
        case "norm kind":
            return "takes gains that are stored less one for gains"
        case "attention biases":
            return "gives none, the layer has them" if said["qkv_bias"] is None else "gives others than the layer has"
        case "MLP biases":
            return "gives none, the layer has them" if said["up_bias"] is None else "gives others than the layer has"
    return "not as in the layer"


def _pre(before: bool) -> str:
    return "pre-norm" if before else "post-norm"


def _parallel(parallel: bool) -> str:
    return "attention and MLP side by side" if parallel else "one after the other"


def _order(interleaved: bool) -> str:
    return "query, key and value of one head after the other" if interleaved else "all queries, then keys, then values"


def names_words(found: Loaded) -> str:
    """What is wrong with checkpoint names."""
    parts = [found.error] if found.error else []
    if found.missing:
        parts.append(f"asks for {some(found.missing)}, which the layer does not have")
    if found.unread:
        parts.append(f"never asks for {some(found.unread)}")
    if found.misplaced:
        parts.append(f"puts other tensors into {some(found.misplaced)} than its own tuples")
    return "checkpoint names: " + "; ".join(parts)


def some(words: Iterable[str]) -> str:
    """The first few, and how many more."""
    every = list(words)
    more = f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else ""
    return ", ".join(every[:MOST_NAMED]) + more


def verdict_words(defects: list[Defect], proof: Proof, *, usable: bool) -> str:
    """The verdict on one policy, in a few words."""
    if proof.problem:
        return f"not judged to the end: {proof.problem}"
    everywhere = [fault for fault in proof.faults if fault.axis is None and not fault.message.startswith(ASSUMED)]
    crashed = [fault for fault in everywhere if fault.error is None and "raises" in fault.message]
    wrong = [fact for fault in everywhere for fact in fault.facts if fault not in crashed]
    limited = sorted({fact for fault in proof.faults if fault not in everywhere for fact in fault.facts})
    words = []
    if not usable or crashed:
        words.append("cannot be used here")
    if wrong:
        words.append(f"wrong on the simplest model: {', '.join(dict.fromkeys(wrong))}")
    if limited:
        words.append(f"wrong beyond it: {', '.join(limited)}")
    if any(one.id.endswith("-names") for one in defects):
        words.append("checkpoint names wrong")
    return "; ".join(words) or "right"
