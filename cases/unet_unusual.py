"""UNets with something that few of them have: one argument of the configuration or of the call at a time, and adapters.

Shapes: B batch, S tokens that an adapter adds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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
ADAPTERS = ("none", "ip_adapter", "gligen")
"""What makes a model read an image beside the text, or boxes and what is to be in them."""
IP_TOKENS, IP_WIDTH = 2, 5
"""Tokens that an image becomes in an IP-Adapter, and the width of an image's embedding."""


def settled(example: Example) -> Example:
    """The example as it can be: one mask over pixels is for attention between pixels, all of it of one size of image; adapters
    are for transformer blocks, and an IP-Adapter for such as read text in every second attention alone."""
    values = dict(example.values)
    if example["unusual"] == "attention_mask":
        values |= {"blocks": "C", "only_cross_attention": False}
        values["mid"] = "cross" if example["mid"] == "simple" else example["mid"]
    elif is_simple(example):
        values["adapter"] = "none"
        if example["only_cross_attention"]:  # whose mask the original makes as long as a row of pixels and tokens
            values["encoder_mask"] = "none"
    if values["adapter"] == "ip_adapter":
        values["only_cross_attention"] = False
        values["addition"] = "text_time" if example["addition"] == "text_image" else example["addition"]
    return Example(values, example.seed)


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


def with_adapter(model: Any, example: Example) -> nn.Module:
    """The model with an IP-Adapter beside its attention to text, as diffusers puts it there, if the example has one."""
    if example["adapter"] != "ip_adapter":
        return model
    from diffusers.models import attention_processor as processors
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    text = model.config.cross_attention_dim
    kind = processors.IPAdapterAttnProcessor if example["eager_attention"] else processors.IPAdapterAttnProcessor2_0
    chosen = {}
    for name, present in model.attn_processors.items():
        attention = model.get_submodule(name.removesuffix(".processor"))
        reads_text = name.endswith("attn2.processor")
        added = kind(attention.inner_dim, text, num_tokens=(IP_TOKENS,), scale=0.7) if reads_text else present
        chosen[name] = added
    model.set_attn_processor(chosen)
    if model.encoder_hid_proj is not None:
        model.text_encoder_hid_proj = model.encoder_hid_proj
    model.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(IP_WIDTH, text, IP_TOKENS)])
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return model.eval()


def boxes(batch: int, width: int, generator: torch.Generator) -> dict[str, Any]:
    """For GLIGEN: S boxes (B, S, 4), what is to be in them (B, S, ``width``), and which of them count (B, S)."""
    return {
        "boxes": torch.rand(batch, 3, 4, generator=generator),
        "positive_embeddings": torch.randn(batch, 3, width, generator=generator),
        "masks": (torch.rand(batch, 3, generator=generator) < 0.7).float(),
    }
