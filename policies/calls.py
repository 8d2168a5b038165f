"""How a layer is called: what its arguments mean and what it returns.

A replacement keeps the original's signature. This is the description by which it understands the arguments, so that
one fused layer serves architectures whose callers agree on nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Returns(Enum):
    """What the original's forward gives back."""

    TENSOR = "a tensor"
    TENSOR_ALONE = "a tuple of a tensor (and the attention weights if they are asked for)"
    TENSOR_AND_WEIGHTS = "a tuple of a tensor and the attention weights (None unless asked for)"
    TENSOR_AND_CONTEXT = "a tuple of a tensor and the context it was given"


class RotarySource(Enum):
    """Where cosines and sines come from.

    EMBEDDINGS  the call passes (cos, sin), each (B or 1, T, size)
    HALVES      the call passes (sin, cos), each (B or 1, T, size / 2), one angle a pair (GPT-J)
    TABLE       the layer holds a table of such halves and the call passes positions (GPT-J before transformers 5.24)
    ANGLES      the call passes angles (T, B or 1, 1, size) (Megatron)
    """

    EMBEDDINGS = "embeddings"
    HALVES = "halves"
    TABLE = "table"
    ANGLES = "angles"


@dataclass(frozen=True, kw_only=True)
class CallConvention:
    """Names are those of the original's parameters.

    ``ignored`` are arguments that do not change the layer's result; any other argument that is not None and not
    understood sends the call to the original's own forward. ``configured`` False: at a call the original reads nothing of its
    configuration but the attention implementation, so that the rest need not be watched. ``signature`` names the method
    whose parameters the call's positional arguments follow, where ``forward`` itself only passes them on. ``autocast``: under
    autocast the fused layer returns the dtype that the original does.
    """

    returns: Returns = Returns.TENSOR
    rotary: RotarySource | None = None
    sequence_first: bool = False
    true_means_masked: bool = False
    ignored: frozenset[str] = frozenset()
    configured: bool = True
    signature: str = "forward"
    autocast: bool = True


CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value", "cache")
"""What transformers' layers call the key/value cache that they are given; it depends on the layer and on the release."""

HF_IGNORED = frozenset(
    {
        "use_cache",
        "position_ids",
        "cache_position",
        "output_hidden_states",
        "return_dict",
        "num_items_in_batch",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
    }
)
"""Keyword arguments that transformers' models hand down and that eager and sdpa layers do not read. ``use_cache`` is
among them because the cache object alone decides; the packed-sequence lengths are read by flash attention only."""
