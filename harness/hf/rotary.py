"""Rotary position kinds that transformers computes in the model and hands to its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..case import Axis, Workload
from .inputs import POSITIONS

ROPE = Axis("rope", ("default", "other theta", "linear", "dynamic", "yarn", "longrope", "llama3"))


def rope_parameters(kind: str, size: int) -> dict[str, Any]:
    """transformers' ``rope_parameters`` for ``kind`` on ``size`` rotated elements a head."""
    if size <= 2 and kind == "dynamic":
        kind = "default"  # transformers divides by the number of pairs less one
    base: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0}
    short = {"original_max_position_embeddings": POSITIONS // 2}
    match kind:
        case "default":
            return base
        case "other theta":
            return base | {"rope_type": "default", "rope_theta": 71.0}
        case "linear":
            return base | {"factor": 2.5}
        case "dynamic":
            return base | {"factor": 2.0}
        case "yarn":
            return base | short | {"factor": 2.0}
        case "longrope":
            ramp = [1.0 + 0.5 * i for i in range(size // 2)]
            return base | short | {"factor": 2.0, "short_factor": ramp, "long_factor": [2 * one for one in ramp]}
        case "llama3":
            return base | short | {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    raise AssertionError(kind)


def rotary_embeddings(embedding: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
    """Positions as the model hands them to each layer: (cos, sin), each (1, T, R)."""
    positions = torch.arange(workload.tokens)[None] + workload.past
    return {"position_embeddings": embedding(hidden, positions)}
