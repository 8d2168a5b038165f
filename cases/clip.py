"""CLIP: the causal text tower and the non-causal vision tower."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn

from harness.case import Axis, Example, Inputs, Workload
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase

VISION_L14 = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
TEXT_L14 = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


class CLIPCase(TransformersCase):
    name = "clip"
    title = "CLIP encoder layer"
    configuration = "transformers:CLIPTextConfig"
    model = "transformers:CLIPTextModel"
    layer = "transformers.models.clip.modeling_clip:CLIPEncoderLayer"
    causal = False
    cached = False
    static_cache = False
    indexed = False
    axes = (
        Axis("tower", ("text", "vision")),
        hf.IMPLEMENTATION,
        hf.HEADS,
        hf.ODD_HEAD_SIZES,
        hf.INNER,
        Axis("activation", ("quick_gelu", *(one for one in hf.ACTIVATIONS.values if one != "quick_gelu"))),
        hf.EPS,
        *hf.COMMON,
    )
    workloads = (
        Workload(name="clip-vit-l/14", phase="encoder", batch=1, tokens=257, config=VISION_L14, weight_bytes=50_400_000),
        Workload(name="clip-l/14 text", phase="encoder", batch=2, tokens=77, config=TEXT_L14, weight_bytes=28_400_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        common_kwargs = {
            "hidden_size": example["heads"] * example["head_size"],
            "num_attention_heads": example["heads"],
            "intermediate_size": example["inner"],
            "num_hidden_layers": example["layers"],
            "hidden_act": example["activation"],
            "layer_norm_eps": example["eps"],
            # Off by default: then nothing would tell training from evaluation.
            "attention_dropout": 0.1,
        }
        if example["tower"] == "vision":
            return common_kwargs | {"image_size": 6, "patch_size": 3}
        ends = {"bos_token_id": None, "eos_token_id": 2}
        return common_kwargs | {"vocab_size": hf.VOCABULARY, "max_position_embeddings": hf.positions(example)} | ends

    def make(self, config: Any, example: Example) -> nn.Module:
        vision = example["tower"] == "vision"
        model: nn.Module = resolve_name("transformers:CLIPVisionModel" if vision else self.model)(config)
        return model

    def configuration_of(self, example: Example) -> str:
        return "transformers:CLIPVisionConfig" if example["tower"] == "vision" else self.configuration

    def is_causal(self, example: Example) -> bool:
        return bool(example["tower"] == "text")

    def inputs(self, example: Example) -> Inputs:
        if example["tower"] == "text":
            return super().inputs(example)
        generator = torch.Generator().manual_seed(example.seed + 2)
        return Inputs(kwargs={"pixel_values": torch.randn(example["batch"], 3, 6, 6, generator=generator)})
