"""Conditional UNets of diffusers: Stable Diffusion 1.x, 2.x, XL, LCM, and what their configuration allows beyond.

Shapes: B batch, S conditioning tokens, Y x X image; sizes of the levels differ, and sides may be odd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.case import Axis, Case, Example, Inputs, Refusal, Workload, flag
from harness.nested import own_lists
from harness.randomise import randomise

from .unet_inputs import conditioning, image, residuals
from .unet_refused import refused_diffusion
from .unet_sizes import SD15, SD21, SDXL
from .unet_unusual import ADAPTERS, UNUSUAL, is_simple, settled, unusual, with_adapter

DOWN = {
    "C": "CrossAttnDownBlock2D",
    "D": "DownBlock2D",
    "A": "AttnDownBlock2D",
    "S": "SimpleCrossAttnDownBlock2D",
    "R": "ResnetDownsampleBlock2D",
}
UP = {
    "C": "CrossAttnUpBlock2D",
    "D": "UpBlock2D",
    "A": "AttnUpBlock2D",
    "S": "SimpleCrossAttnUpBlock2D",
    "R": "ResnetUpsampleBlock2D",
}
CLASSES = 7
PROJECTED = 10
"""Width of what projection class embeddings and text_time conditioning take."""


class UNetCase(Case):
    name = "unet"
    title = "Diffusion UNet"
    layered = False
    effort = 12.0
    axes = (
        Axis("blocks", ("C", "CD", "DC", "CC", "CCD", "D", "AD", "SR")),
        Axis("mid", ("cross", "plain", "simple", "none")),
        Axis("heads", ("2", "1", "3", "5", "per block"), large=("3", "5", "8"), largest=("20",)),
        Axis("groups", (2, 1, 4), large=(32,)),
        Axis("group_size", (4, 2, 6), claimed=False, large=(1, 2, 4), largest=(80,)),
        Axis("layers", (1, 2)),
        Axis("depth", ("1", "2", "per block")),
        flag("linear_projection", simplest=False),
        Axis("context", ("narrow", "as channels")),
        flag("only_cross_attention", simplest=False),
        flag("upcast_attention", simplest=False),
        Axis("class_embedding", ("none", "lookup", "timestep", "identity", "projection", "simple_projection")),
        flag("class_concat", simplest=False),
        flag("guidance", simplest=False),
        Axis("addition", ("none", "text_time", "text", "text_image")),
        flag("encoder_projection", simplest=False),
        Axis("time_shift", ("default", "scale_shift")),
        Axis("time_embedding", ("positional", "fourier")),
        Axis("time_activation", ("none", "silu", "gelu")),
        Axis("activation", ("silu", "gelu", "mish", "relu")),
        Axis("eps", (1e-5, 1e-12, 1e-2)),
        Axis("mid_scale", (1.0, 1.5)),
        flag("center_input", simplest=False),
        Axis("unusual", ("nothing", *UNUSUAL)),
        Axis("adapter", ADAPTERS),
        flag("freeu", simplest=False),
        Axis("conv_out_kernel", (3, 1)),
        Axis("batch", (1, 2, 3, 5), largest=(17,)),
        Axis("height", (4, 5, 6, 7, 16), large=(16, 24, 33), largest=(65, 700)),
        Axis("width", (4, 3, 6, 16), large=(16, 24, 20, 50), largest=(65,)),
        Axis("tokens", (3, 1, 5), large=(77, 130), largest=(300, 513)),
        Axis("format", ("contiguous", "channels_last", "transposed")),
        Axis("weights", ("contiguous", "channels_last")),
        Axis("encoder_mask", ("none", "bool", "float", "no text")),
        Axis("residuals", ("none", "control", "adapter", "both", "old adapter")),
        Axis("timestep", ("int", "float", "0-d", "1-d", "batch", "fractions")),
        flag("return_dict", simplest=True),
        flag("positional", simplest=False),
        flag("eager_attention", simplest=False),
    )
    input_axes = ("batch", "height", "width", "tokens", "format", "encoder_mask", "residuals", "timestep", "return_dict")
    workloads = (
        Workload(
            name="sd1.5 unet", phase="image", batch=1, tokens=32, config=SD15, weight_bytes=3_438_000_000, image_flops=1.7e11
        ),
        Workload(
            name="sd1.5 unet", phase="image", batch=1, tokens=64, config=SD15, weight_bytes=3_438_000_000, image_flops=6.8e11
        ),
        Workload(
            name="sd2.1 unet", phase="image", batch=1, tokens=64, config=SD21, weight_bytes=3_464_000_000, image_flops=6.8e11
        ),
        Workload(
            name="sdxl unet", phase="image", batch=1, tokens=64, config=SDXL, weight_bytes=10_270_000_000, image_flops=1.5e12
        ),
    )

    def config(self, example: Example) -> dict[str, Any]:
        """Arguments of the model. Where one choice needs another, it is derived here."""
        example = settled(example)
        blocks, channels = example["blocks"], channels_of(example)
        count = len(blocks)
        return {
            "block_out_channels": channels,
            "down_block_types": tuple(DOWN[one] for one in blocks),
            "up_block_types": tuple(UP[one] for one in reversed(blocks)),
            "mid_block_type": _MID[example["mid"]],
            "attention_head_dim": _heads(example, count),
            "norm_num_groups": example["groups"],
            "layers_per_block": example["layers"],
            "transformer_layers_per_block": _depth(example["depth"], count),
            "use_linear_projection": example["linear_projection"],
            "cross_attention_dim": 6 if example["context"] == "narrow" else channels[0],
            "only_cross_attention": example["only_cross_attention"],
            "upcast_attention": example["upcast_attention"],
            "resnet_time_scale_shift": example["time_shift"],
            "time_embedding_type": example["time_embedding"],
            "time_embedding_act_fn": None if example["time_activation"] == "none" else example["time_activation"],
            "timestep_post_act": None if example["time_activation"] == "none" else example["time_activation"],
            "act_fn": example["activation"],
            "norm_eps": example["eps"],
            "mid_block_scale_factor": example["mid_scale"],
            "center_input_sample": example["center_input"],
            "conv_out_kernel": example["conv_out_kernel"],
            "time_cond_proj_dim": 5 if example["guidance"] else None,
            "in_channels": 4,
            "attention_type": "gated" if example["adapter"] == "gligen" else "default",
            **_conditioning(example),
            **unusual(example, count),
        }

    def build(self, example: Example) -> nn.Module:
        from diffusers import UNet2DConditionModel

        example = settled(example)
        with torch.device("meta"):
            model: Any = UNet2DConditionModel(**self.config(example)).eval()
        model.to_empty(device="cpu")
        if example["eager_attention"] and not is_simple(example):
            model.set_default_attn_processor()
        model = with_adapter(model, example)
        if example["weights"] == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        if example["freeu"]:
            model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        return randomise(model, example.seed)

    def inputs(self, example: Example) -> Inputs:
        generator = torch.Generator().manual_seed(example.seed + 2)
        config, example = self.config(example), settled(example)
        kwargs = {
            "sample": image(example, config["in_channels"], generator),
            "timestep": _timestep(example, generator),
            **conditioning(example, config, generator),
            **residuals(example, config["block_out_channels"], generator),
            "return_dict": example["return_dict"],
        }
        return Inputs(kwargs={**kwargs, "positional": example["positional"]})

    def expected(self, example: Example) -> int:
        return 1

    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return self.outputs(self.call(model, inputs))

    def call(self, model: nn.Module, inputs: Inputs) -> Any:
        kwargs = dict(inputs.kwargs)
        positional = kwargs.pop("positional")
        kwargs |= own_lists(kwargs)
        names = ("sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond") if positional else ()
        first = [kwargs.pop(name) for name in names]
        return model(*first, **kwargs)

    def outputs(self, returned: Any) -> dict[str, Tensor]:
        return {"sample": returned[0]}

    def refusals(self) -> tuple[Refusal, ...]:
        return refused_diffusion(lambda: self.build(self.simplest))

    def workload_module(self, workload: Workload) -> nn.Module:
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            model = UNet2DConditionModel(**workload.config)
        model = model.to_empty(device="cpu").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.02)
        return model

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        batch, side, width = workload.batch, workload.tokens, workload.config["cross_attention_dim"]
        call: dict[str, Any] = {
            "sample": torch.randn(batch, 4, side, side),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": torch.randn(batch, 77, width),
        }
        if workload.config.get("addition_embed_type") == "text_time":
            times = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]]).expand(batch, -1).contiguous()
            call["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 1280), "time_ids": times}
        return call


_MID = {
    "cross": "UNetMidBlock2DCrossAttn",
    "plain": "UNetMidBlock2D",
    "simple": "UNetMidBlock2DSimpleCrossAttn",
    "none": None,
}


def channels_of(example: Example) -> tuple[int, ...]:
    """Channels of each level: multiples of the group count, even, all different, and enough for every head."""
    unit = example["groups"] * example["group_size"]
    first = unit * -(-max(6, _most_heads(example)) // unit)
    return tuple(first + unit * level for level in range(len(example["blocks"])))


def _heads(example: Example, count: int) -> Any:
    """Attention heads; in blocks with added projections the size of a head, which has to divide the channels."""
    sizes = (1, 2) if is_simple(example) else (1, 2, 3, 5)
    if example["heads"] == "per block":
        return tuple(sizes[level % len(sizes)] for level in range(count))
    return min(int(example["heads"]), 2) if is_simple(example) else int(example["heads"])


def _most_heads(example: Example) -> int:
    return 5 if example["heads"] == "per block" else int(example["heads"])


def _depth(depth: str, count: int) -> Any:
    return tuple(1 + level % 2 for level in range(count)) if depth == "per block" else int(depth)


def _conditioning(example: Example) -> dict[str, Any]:
    kind, addition = example["class_embedding"], example["addition"]
    return {
        "class_embed_type": None if kind in ("none", "lookup") else kind,
        "num_class_embeds": CLASSES if kind == "lookup" else None,
        "class_embeddings_concat": example["class_concat"] and kind != "none" and addition == "none",
        "projection_class_embeddings_input_dim": PROJECTED,
        "addition_embed_type": None if addition == "none" else addition,
        "addition_time_embed_dim": 2,
        "addition_embed_type_num_heads": 2,
        "encoder_hid_dim": 8 if example["encoder_projection"] else None,
        "encoder_hid_dim_type": "text_proj" if example["encoder_projection"] else None,
    }


def _timestep(example: Example, generator: torch.Generator) -> Any:
    step = int(torch.randint(0, 1000, (), generator=generator))
    if example["timestep"] == "batch":
        return torch.randint(0, 1000, (example["batch"],), generator=generator)
    if example["timestep"] == "fractions":
        return torch.rand(example["batch"], generator=generator) * 1000
    return {"int": step, "float": step + 0.25, "0-d": torch.tensor(step), "1-d": torch.tensor([step])}[example["timestep"]]
