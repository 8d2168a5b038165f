"""Faults of what a diffusion model is called with: arguments that get lost or come in at the place of another, signatures that
have changed."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest import mock

from torch import Tensor

from policies.fused.diffusion_attention import FusedAttention
from policies.fused.unet import FusedUNet
from policies.fused.vae import FusedCoder, FusedVAE

from .diffusion import in_new_classes, of_diffusion, takes, vae
from .fault import Patch
from .graphs import captures, unet


def _without(*names: str) -> Patch:
    """A patch of the UNet's call: arguments that do not reach the original's forward."""

    def make(honest: Any) -> Any:
        def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
            order = ("sample", "timestep", "encoder_hidden_states", "class_labels", "timestep_cond")
            args = tuple(None if name in names else one for name, one in zip(order, args, strict=False))
            return honest(self, *args, **{name: one for name, one in kwargs.items() if name not in names})

        return wrong

    return FusedUNet, "forward", make


def _without_freeu(honest: Any) -> Any:
    """What ``enable_freeu`` has set on the up blocks is not there in a call."""

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for block in self.up_blocks:
                if getattr(block, "s1", None):
                    stack.enter_context(mock.patch.object(block, "s1", None))
            return honest(self, *args, **kwargs)

    return wrong


def _in_order(honest: Any) -> Any:
    """Text states are read as if each row began where the one before ends."""

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        states = kwargs.get("encoder_hidden_states")
        if states is not None:
            _, tokens, width = states.shape
            kwargs["encoder_hidden_states"] = states.as_strided(states.shape, (tokens * width, width, 1))
        return honest(self, *args, **kwargs)

    return wrong


def _text_alone(honest: Any) -> Any:
    """What an image adapter hands to attention beside the text is not read."""

    def wrong(self: FusedAttention, hidden_states: Tensor, encoder_hidden_states: Any = None, **rest: Any) -> Any:
        if isinstance(encoder_hidden_states, tuple):
            return self._fused_attend(hidden_states, encoder_hidden_states[0], rest.get("attention_mask"))
        return honest(self, hidden_states, encoder_hidden_states, **rest)

    return wrong


def _whole_steps(honest: Any) -> Any:
    """A tensor of timesteps is one of whole numbers, whatever is in it."""

    def wrong(self: Any, sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        return honest(self, sample, timestep.long() if isinstance(timestep, Tensor) else timestep, *args, **kwargs)

    return wrong


def _other_form(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.pop("return_dict", True)
        return honest(self, *args, return_dict=not wanted, **kwargs)

    return wrong


def _vae_forward(honest: Any) -> Any:
    """A forward of the wrapper's own, which takes ``generator`` and forgets it. The honest one is the original's."""

    def wrong(self: FusedVAE, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return self._fused_original.forward(self, *args, **kwargs)

    return wrong


def _undefined_flag(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AttributeError("object has no attribute 'cuda_graph_created'")

    return wrong


def _old_signature(honest: Any) -> Any:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("attention() takes 6 positional arguments but 7 were given")

    return wrong


DIFFUSION_CALLS = (
    of_diffusion(
        "F75 timestep_cond",
        "F75 F70",
        "DeepSpeed PR #8408, PR #4663",
        "Guidance embeddings do not reach the UNet.",
        in_new_classes(_without("timestep_cond")),
        takes("guidance"),
    ),
    of_diffusion(
        "F75 added_cond_kwargs",
        "F75 F70",
        "DeepSpeed PR #8408, PR #4770",
        "Pooled text and time ids do not reach the UNet.",
        in_new_classes(_without("added_cond_kwargs")),
        takes("addition"),
    ),
    of_diffusion(
        "F70 class_labels",
        "F70",
        "DeepSpeed PR #3142",
        "Class labels do not reach the UNet.",
        in_new_classes(_without("class_labels")),
        takes("class_embedding"),
    ),
    of_diffusion(
        "F70 encoder mask",
        "F70",
        "DeepSpeed PR #2699",
        "The mask over the text does not reach the UNet.",
        in_new_classes(_without("encoder_attention_mask")),
        takes("encoder_mask"),
    ),
    of_diffusion(
        "F70 pixel mask",
        "F70",
        "DeepSpeed PR #2699",
        "The mask over the image's own pixels does not reach the UNet.",
        in_new_classes(_without("attention_mask")),
        takes("unusual"),
    ),
    of_diffusion(
        "F70 cross_attention_kwargs",
        "F70",
        "DeepSpeed PR #3142",
        "What a call hands to the attentions (here GLIGEN's boxes) does not reach the UNet.",
        in_new_classes(_without("cross_attention_kwargs")),
        takes("adapter"),
    ),
    of_diffusion(
        "F70 IP-Adapter",
        "F70",
        "DeepSpeed PR #4770",
        "An attention with an image adapter's processor computes what one without computes.",
        in_new_classes((FusedAttention, "forward", _text_alone)),
        takes("adapter"),
    ),
    of_diffusion(
        "F70 FreeU",
        "F70",
        "DeepSpeed PR #4911",
        "What is set on the blocks of the UNet, and is no argument, gets lost.",
        in_new_classes((FusedUNet, "forward", _without_freeu)),
        takes("freeu"),
    ),
    of_diffusion(
        "F48 text",
        "F48",
        "TransformerEngine PR #1017, vllm PR #3324",
        "Text states are read as if they lay in order in memory, as those of one prompt expanded to all rows do not.",
        in_new_classes((FusedUNet, "forward", _in_order)),
        unet,
        ("call forms",),
    ),
    of_diffusion(
        "M22 timesteps",
        "M22",
        "DeepSpeed, static inputs of DSUNet",
        "A timestep between two whole numbers is copied to where whole ones are kept.",
        in_new_classes((FusedUNet, "forward", _whole_steps)),
        takes("timestep"),
    ),
    of_diffusion(
        "F70 residuals",
        "F70",
        "DeepSpeed PR #4911",
        "Residuals of a side model do not reach the UNet.",
        in_new_classes(
            _without(
                "down_block_additional_residuals",
                "mid_block_additional_residual",
                "down_intrablock_additional_residuals",
            )
        ),
        takes("residuals"),
    ),
    of_diffusion(
        "F75 return_dict",
        "F75 F16",
        "DeepSpeed PR #8408",
        "return_dict comes in at the place of another argument.",
        in_new_classes((FusedUNet, "forward", _other_form)),
        unet,
    ),
    of_diffusion(
        "F76 undefined",
        "F76",
        "DeepSpeed PR #8413",
        "A method of the VAE reads an attribute that nobody set.",
        in_new_classes((FusedCoder, "forward", _undefined_flag)),
        vae,
    ),
    of_diffusion(
        "F76 generator",
        "F76",
        "DeepSpeed PR #8413",
        "The VAE's forward takes a generator and forgets it.",
        in_new_classes((FusedVAE, "forward", _vae_forward)),
        vae,
    ),
    of_diffusion(
        "F34 diffusers",
        "F34",
        "DeepSpeed PR #4656, PR #3218",
        "A shared attention has a new signature, and diffusion models still call the old one.",
        (FusedAttention, "_fused_attend", _old_signature),
        captures,
    ),
)
"""Replacements of diffusion models that lose what they are called with."""
