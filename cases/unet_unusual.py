"""UNets with something that few of them have: one argument of the configuration or of the call at a time."""

from __future__ import annotations

from typing import Any

from harness.case import Example

UNUSUAL = (
    "in_channels",
    "conv_in_kernel",
    "downsample_padding",
    "time_embedding_dim",
    "flip_sin_to_cos",
    "freq_shift",
    "reverse_transformer_layers_per_block",
    "resnet_skip_time_act",
    "resnet_out_scale_factor",
    "cross_attention_norm",
    "attention_mask",
)
"""What few configurations set or, the last, few calls bring, and a replacement may not look for."""


def settled(example: Example) -> Example:
    """The example as it can be: one mask over pixels is for attention between pixels, all of it of one size of image."""
    if example["unusual"] != "attention_mask":
        return example
    mid = "cross" if example["mid"] == "simple" else example["mid"]
    return Example({**example.values, "blocks": "C", "mid": mid, "only_cross_attention": False}, example.seed)


def is_simple(example: Example) -> bool:
    """Whether a block has the attention of Imagen and Kandinsky, with its added projections."""
    return example["mid"] == "simple" or "S" in example["blocks"]


def unusual(example: Example, count: int) -> dict[str, Any]:
    """The argument that the ``unusual`` axis names. Where a model has no part that reads it, it changes nothing."""
    every: dict[str, dict[str, Any]] = {
        "in_channels": {"in_channels": 9},
        "conv_in_kernel": {"conv_in_kernel": 5},
        "downsample_padding": {"downsample_padding": 0},
        "time_embedding_dim": {"time_embedding_dim": 12},
        "flip_sin_to_cos": {"flip_sin_to_cos": False},
        "freq_shift": {"freq_shift": 1, "addition_time_embed_dim": 4},
        "reverse_transformer_layers_per_block": {
            "reverse_transformer_layers_per_block": tuple(2 - level % 2 for level in range(count))
        },
        "resnet_skip_time_act": {"resnet_skip_time_act": True},
        "resnet_out_scale_factor": {"resnet_out_scale_factor": 1.5},
    }
    if is_simple(example):
        every["cross_attention_norm"] = {"cross_attention_norm": "group_norm", "cross_attention_dim": 64}  # in 32 groups
    return every.get(str(example["unusual"]), {})
