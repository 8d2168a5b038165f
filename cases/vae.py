"""The autoencoder of Stable Diffusion (``AutoencoderKL``): every public way through it.

Shapes: B batch, Y x X image in pixels or latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.case import Axis, Case, Example, Inputs, Refusal, Workload, flag
from harness.randomise import randomise

from .unet_refused import refused_diffusion
from .unet_sizes import SD_VAE

DOWN = {"D": "DownEncoderBlock2D", "A": "AttnDownEncoderBlock2D"}
UP = {"D": "UpDecoderBlock2D", "A": "AttnUpDecoderBlock2D"}
TILE = 8
"""Side of a tile in pixels. Image sides above it leave a last tile that three levels can halve."""


class VAECase(Case):
    name = "vae"
    title = "Diffusion VAE"
    layered = False
    effort = 10.0
    axes = (
        Axis("way", ("decode", "encode", "forward", "sample")),
        Axis("blocks", ("D", "DD", "DDD", "AD")),
        Axis("groups", (2, 1, 4), large=(32,)),
        Axis("group_size", (2, 3, 1), claimed=False, large=(1, 2), largest=(80,)),
        Axis("layers", (1, 2)),
        flag("mid_attention", simplest=True),
        flag("quant_conv", simplest=True),
        flag("post_quant_conv", simplest=True),
        Axis("latent_channels", (4, 3, 1)),
        Axis("activation", ("silu", "gelu", "relu", "mish")),
        flag("force_upcast", simplest=True),
        flag("slicing", simplest=False),
        flag("tiling", simplest=False),
        Axis("batch", (1, 2, 3, 5), largest=(17,)),
        Axis("height", (8, 10, 5, 12, 16), large=(24, 33), largest=(65,)),
        Axis("width", (8, 10, 7, 16), large=(24, 32), largest=(65,)),
        Axis("format", ("contiguous", "channels_last", "transposed")),
        Axis("weights", ("contiguous", "channels_last")),
        flag("return_dict", simplest=True),
        flag("eager_attention", simplest=False),
    )
    input_axes = ("batch", "height", "width", "format", "return_dict")
    workloads = (
        Workload(
            name="sd vae decode", phase="image", batch=1, tokens=16, config=SD_VAE, weight_bytes=335_000_000, image_flops=1.6e11
        ),
        Workload(
            name="sd vae encode", phase="image", batch=1, tokens=16, config=SD_VAE, weight_bytes=335_000_000, image_flops=7e10
        ),
        Workload(
            name="sd vae decode", phase="image", batch=1, tokens=32, config=SD_VAE, weight_bytes=335_000_000, image_flops=6.2e11
        ),
        Workload(
            name="sd vae encode", phase="image", batch=1, tokens=32, config=SD_VAE, weight_bytes=335_000_000, image_flops=2.8e11
        ),
        Workload(
            name="sd vae decode", phase="image", batch=1, tokens=64, config=SD_VAE, weight_bytes=335_000_000, image_flops=2.5e12
        ),
    )

    def config(self, example: Example) -> dict[str, Any]:
        """Arguments of the model."""
        blocks, unit = example["blocks"], example["groups"] * example["group_size"]
        return {
            "block_out_channels": tuple(unit * (2 + level) for level in range(len(blocks))),
            "down_block_types": tuple(DOWN[one] for one in blocks),
            "up_block_types": tuple(UP[one] for one in reversed(blocks)),
            "layers_per_block": example["layers"],
            "norm_num_groups": example["groups"],
            "latent_channels": example["latent_channels"],
            "act_fn": example["activation"],
            "mid_block_add_attention": example["mid_attention"],
            "use_quant_conv": example["quant_conv"],
            "use_post_quant_conv": example["post_quant_conv"],
            "force_upcast": example["force_upcast"],
            "sample_size": TILE,
        }

    def build(self, example: Example) -> nn.Module:
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            model: Any = AutoencoderKL(**self.config(example)).eval()
        model.to_empty(device="cpu")
        if example["eager_attention"]:
            model.set_default_attn_processor()
        if example["weights"] == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        model.use_slicing, model.use_tiling = example["slicing"], example["tiling"]
        return randomise(model, example.seed)

    def inputs(self, example: Example) -> Inputs:
        generator = torch.Generator().manual_seed(example.seed + 2)
        height, width = (_tileable(example, example[name]) for name in ("height", "width"))
        channels = 3
        if example["way"] == "decode":
            factor, channels = 2 ** (len(example["blocks"]) - 1), example["latent_channels"]
            height, width = max(height // factor, 1), max(width // factor, 1)
        made = torch.randn(example["batch"], channels, height, width, generator=generator)
        if example["format"] == "channels_last":
            made = made.contiguous(memory_format=torch.channels_last)
        elif example["format"] == "transposed":
            made = made.transpose(2, 3).contiguous().transpose(2, 3)
        return Inputs(kwargs={"image": made, "way": example["way"], "seed": example.seed, "return_dict": example["return_dict"]})

    def expected(self, example: Example) -> int:
        return 1

    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return self.outputs(self.call(model, inputs))

    def call(self, model: Any, inputs: Inputs) -> Any:
        image, as_dict = inputs.kwargs["image"], inputs.kwargs["return_dict"]
        match inputs.kwargs["way"]:
            case "encode":
                return model.encode(image, return_dict=as_dict)
            case "decode":
                return model.decode(image, return_dict=as_dict)
            case "forward":
                return model(image, return_dict=as_dict)
        generator = torch.Generator().manual_seed(inputs.kwargs["seed"])
        return model(image, sample_posterior=True, return_dict=as_dict, generator=generator)

    def outputs(self, returned: Any) -> dict[str, Tensor]:
        first = returned[0]
        return {"sample": first} if isinstance(first, Tensor) else {"mean": first.mean, "logvar": first.logvar}

    def refusals(self) -> tuple[Refusal, ...]:
        return refused_diffusion(lambda: self.build(self.simplest))

    def workload_module(self, workload: Workload) -> nn.Module:
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            model = AutoencoderKL(**workload.config)
        model = model.to_empty(device="cpu").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.02)
        return Encoding(model) if "encode" in workload.name else Decoding(model)

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        if isinstance(module, Encoding):
            return {"image": torch.randn(workload.batch, 3, 8 * workload.tokens, 8 * workload.tokens)}
        return {"latents": torch.randn(workload.batch, 4, workload.tokens, workload.tokens)}


def _tileable(example: Example, side: int) -> int:
    """A side whose last tile three levels can halve: tiles begin every three quarters of a tile."""
    left = side % (3 * TILE // 4)
    return side + 4 - left if example["tiling"] and 0 < left < 4 else side


class Decoding(nn.Module):
    """A VAE by its ``decode``: latents (B, 4, Y, X) to images (B, 3, 8Y, 8X)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return image


class Encoding(nn.Module):
    """A VAE by its ``encode``: images (B, 3, 8Y, 8X) to the parameters of their latents (B, 8, Y, X)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        moments: Tensor = self.vae.encode(image, return_dict=False)[0].parameters
        return moments
