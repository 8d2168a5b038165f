"""Inputs of tiny UNets: images in any memory format, conditioning of every kind, residuals of side models.

Shapes: B batch, S conditioning tokens, Y x X image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.case import Example

from .unet_unusual import IP_WIDTH, boxes


def sides(example: Example) -> tuple[int, int]:
    """Height and width. Blocks that halve by pooling, or without padding, cannot restore an odd side: those are rounded up."""
    halved = "R" in example["blocks"] or "S" in example["blocks"] or example["unusual"] == "downsample_padding"
    factor = 2 ** len(example["blocks"]) if halved else 1
    height, width = (-(-example[name] // factor) * factor for name in ("height", "width"))
    return height, width


def image(example: Example, channels: int, generator: torch.Generator) -> Tensor:
    """(B, ``channels``, Y, X) laid out as the ``format`` axis says."""
    height, width = sides(example)
    made = torch.randn(example["batch"], channels, height, width, generator=generator)
    if example["format"] == "channels_last":
        return made.contiguous(memory_format=torch.channels_last)
    if example["format"] == "transposed":
        return made.transpose(2, 3).contiguous().transpose(2, 3)
    return made


def conditioning(example: Example, config: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Text states and whatever else the configuration asks for."""
    batch, tokens = example["batch"], example["tokens"]
    context = config["cross_attention_dim"]
    given = config["encoder_hid_dim"] or context
    widest = given if isinstance(given, int) else given[0]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    kwargs: dict[str, Any] = {"encoder_hidden_states": normal(batch, tokens, widest)}
    labels = {
        "none": lambda: None,
        "lookup": lambda: torch.randint(0, config["num_class_embeds"], (batch,), generator=generator),
        "timestep": lambda: torch.rand(batch, generator=generator) * 100,
        "identity": lambda: normal(batch, time_width(config)),
        "projection": lambda: normal(batch, config["projection_class_embeddings_input_dim"]),
        "simple_projection": lambda: normal(batch, config["projection_class_embeddings_input_dim"]),
    }
    kwargs["class_labels"] = labels[example["class_embedding"]]()
    kwargs["timestep_cond"] = normal(batch, 5) if example["guidance"] else None
    if example["addition"] == "text_time":
        times = torch.rand(batch, 2, generator=generator) * 100
        width = config["projection_class_embeddings_input_dim"] - 2 * config["addition_time_embed_dim"]
        kwargs["added_cond_kwargs"] = {"text_embeds": normal(batch, width), "time_ids": times}
    elif example["addition"] == "text_image":
        kwargs["added_cond_kwargs"] = {"text_embeds": normal(batch, context), "image_embeds": normal(batch, context)}
    if example["encoder_mask"] != "none":
        mask = torch.rand(batch, tokens, generator=generator) < 0.7
        mask[:, 0] = True
        if example["encoder_mask"] == "no text":
            mask[0] = False
        kwargs["encoder_attention_mask"] = mask.float() if example["encoder_mask"] == "float" else mask
    if example["adapter"] == "ip_adapter":
        kwargs["added_cond_kwargs"] = {**kwargs.get("added_cond_kwargs", {}), "image_embeds": [normal(batch, 1, IP_WIDTH)]}
    elif example["adapter"] == "gligen":
        kwargs["cross_attention_kwargs"] = {"gligen": boxes(batch, context, generator)}
    if example["unusual"] == "attention_mask":
        height, width = sides(example)
        pixels = torch.rand(batch, height * width, generator=generator) < 0.7
        pixels[:, 0] = True
        kwargs["attention_mask"] = pixels if example.seed & 1 else pixels.float()
    return kwargs


def time_width(config: dict[str, Any]) -> int:
    """Width of the time embedding, by the original's rule."""
    first: int = config["block_out_channels"][0]
    return config.get("time_embedding_dim") or first * (2 if config["time_embedding_type"] == "fourier" else 4)


def residuals(example: Example, channels: tuple[int, ...], generator: torch.Generator) -> dict[str, Any]:
    """What a ControlNet or a T2I adapter adds to the UNet."""
    kind = example["residuals"]
    aside, ends = _shapes(example, channels)

    def normal(shape: tuple[int, int, int]) -> Tensor:
        return torch.randn(example["batch"], *shape, generator=generator)

    given: dict[str, Any] = {}
    if kind in ("adapter", "both") and "S" not in example["blocks"]:
        given["down_intrablock_additional_residuals"] = [normal(shape) for shape in ends]
    if kind in ("control", "both") and example["mid"] != "none":
        given["down_block_additional_residuals"] = tuple(normal(shape) for shape in aside)
        given["mid_block_additional_residual"] = normal(aside[-1])
    if kind == "old adapter" and "S" not in example["blocks"]:  # by the name that they had before there were others beside them
        given["down_block_additional_residuals"] = [normal(shape) for shape in ends]
    return given


def _shapes(example: Example, channels: tuple[int, ...]) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Shapes of what the down path puts aside, and of what an adapter adds to each block: before its downsampler where
    the block has cross-attention, behind it where not."""
    height, width = sides(example)
    aside, ends = [(channels[0], height, width)], []
    for level, (block, count) in enumerate(zip(example["blocks"], channels, strict=True)):
        aside += [(count, height, width)] * example["layers"]
        before = (count, height, width)
        if level < len(channels) - 1:
            height, width = -(-height // 2), -(-width // 2)
            aside.append((count, height, width))
        ends.append(before if block == "C" else aside[-1])
    return aside, ends
