"""Scripts that show what is wrong with DeepSpeed's policies for diffusion models: torch, diffusers, deepspeed, no more."""

from __future__ import annotations

"""Exit status of a script that shows its fault."""

ALWAYS = {"UNetPolicy": ("keyword", "return_dict"), "VAEPolicy": ("graphs",)}
"""What is asked of each policy beside its case: the calls that a case does not make."""

SAYS = {
    "return_dict": "return_dict=False goes into the original's class_labels, so that no tuple is ever given",
    "keyword": "its forward calls the timestep 'timestamp', so that unet(sample, timestep=...) is a TypeError",
    "graphs": "its forward reads cuda_graph_created, which nothing defines: with CUDA graphs, the default, calling the model "
    "is an AttributeError on any device",
}

_CONSTRUCTION = '''"""{policy}: it cannot be made before the model that it is for has been imported by somebody else.

Needs torch, diffusers and deepspeed. Exit status 1 and one line: the fault shows; 0: it does not.
"""

import sys

from deepspeed.module_inject.replace_policy import {policy}

try:
    {policy}()
except Exception as problem:
    print(f"made before {model} was imported, it raises {{type(problem).__name__}}: {{problem}}")
    sys.exit(1)
print("it can be made")
'''

_CALL = '''"""{policy}: {what}.

Needs torch, diffusers and deepspeed. Exit status 1 and one line: the fault shows; 0: it does not.
"""

import copy
import sys

import torch
from diffusers import {model}
from deepspeed.module_inject.replace_policy import {policy}


def build():
    torch.manual_seed(0)
    return {model}({config}).eval()


@torch.no_grad()
def main() -> int:
    original = build()
    replaced = {policy}().apply(copy.deepcopy(original), enable_cuda_graph={graphs})
    {inputs}
    def call(model):
        return {call}

    expected = call(original)
    try:
        actual = call(replaced)
    except Exception as problem:
        print(f"where the original answers, it raises {{type(problem).__name__}}: {{problem}}")
        return 1
    if type(actual) is not type(expected):
        print(f"where the original gives a {{type(expected).__name__}}, it gives a {{type(actual).__name__}}")
        return 1
    gap = float((expected[0] - actual[0]).abs().max() / expected[0].abs().max())
    print(f"relative error {{gap:.1e}}")
    return int(gap > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
'''

_UNET = (
    'sample_size=8, block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), '
    "cross_attention_dim=6, attention_head_dim=2, norm_num_groups=2, layers_per_block=1{more}"
)
_VAE = (
    'block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), '
    "layers_per_block=1, norm_num_groups=2, sample_size=8"
)
_UNET_INPUTS = "sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 6)"
_VAE_INPUTS = "image = torch.randn(1, 3, 8, 8)"

_CALLS: dict[str, dict[str, str]] = {
    "keyword": {"what": SAYS["keyword"], "call": "model(sample, timestep=5, encoder_hidden_states=states)"},
    "return_dict": {
        "what": SAYS["return_dict"],
        "call": "model(sample, 5, encoder_hidden_states=states, return_dict=False)",
    },
    "guidance": {
        "what": "timestep_cond is taken and dropped (LCM)",
        "more": ", time_cond_proj_dim=5",
        "inputs": "scale = torch.randn(1, 5)",
        "call": "model(sample, 5, encoder_hidden_states=states, timestep_cond=scale)",
    },
    "addition": {
        "what": "added_cond_kwargs are taken and dropped (SDXL)",
        "more": ', addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=14',
        "inputs": 'added = {"text_embeds": torch.randn(1, 6), "time_ids": torch.rand(1, 2)}',
        "call": "model(sample, 5, encoder_hidden_states=states, added_cond_kwargs=added)",
    },
    "class_embedding": {
        "what": "class_labels are not taken",
        "more": ", num_class_embeds=7",
        "inputs": "labels = torch.tensor([3])",
        "call": "model(sample, 5, encoder_hidden_states=states, class_labels=labels)",
    },
    "encoder_mask": {
        "what": "encoder_attention_mask is not taken",
        "inputs": "mask = torch.tensor([[True, True, False]])",
        "call": "model(sample, 5, encoder_hidden_states=states, encoder_attention_mask=mask)",
    },
    "residuals": {
        "what": "a ControlNet's residuals are not taken",
        "inputs": "aside, mid = tuple(torch.randn(1, 8, 8, 8) for _ in range(2)), torch.randn(1, 8, 8, 8)",
        "call": "model(sample, 5, encoder_hidden_states=states, down_block_additional_residuals=aside, "
        "mid_block_additional_residual=mid)",
    },
    "way": {"what": "calling the model itself (and not its encode or decode) is mirrored from the UNet", "call": "model(image)"},
    "graphs": {"what": SAYS["graphs"], "call": "model(image)", "graphs": "True"},
}

_ATTENTION = '''"""UNetPolicy: its attention() leaves out the biases of query, key and value, the group norm and the residual.

Needs torch, diffusers and deepspeed. Exit status 1 and one line: the fault shows; 0: it does not.
"""

import sys

import torch
from diffusers.models.attention_processor import Attention
from diffusers import UNet2DConditionModel
from deepspeed.module_inject.replace_policy import UNetPolicy


@torch.no_grad()
def main() -> int:
    # As in AttnDownBlock2D and AttnUpBlock2D.
    layer = Attention(8, heads=2, dim_head=4, bias=True, norm_num_groups=2, residual_connection=True)
    said = UNetPolicy().attention(layer)
    numbers = sum(one.numel() for one in said if isinstance(one, torch.Tensor))
    total = sum(one.numel() for one in layer.parameters())
    print(f"attention() gives {numbers} of the layer's {total} numbers: no bias of query, key and value, no group norm")
    return int(numbers < total)


if __name__ == "__main__":
    sys.exit(main())
'''


def script(policy: str, key: str) -> str | None:
    """The script for one fault, or None where there is none."""
    model = "UNet2DConditionModel" if policy == "UNetPolicy" else "AutoencoderKL"
    if key == "construction":
        return _CONSTRUCTION.format(policy=policy, model=model)
    if key == "attention":
        return _ATTENTION
    one = _CALLS.get(key)
    if one is None:
        return None
    unet = policy == "UNetPolicy"
    inputs = _UNET_INPUTS if unet else _VAE_INPUTS
    return _CALL.format(
        policy=policy,
        what=one["what"],
        model=model,
        config=_UNET.format(more=one.get("more", "")) if unet else _VAE,
        graphs=one.get("graphs", "False"),
        inputs=f"{inputs}\n    {one['inputs']}\n" if "inputs" in one else f"{inputs}\n",
        call=one["call"],
    )
