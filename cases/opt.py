"""OPT: pre- and post-norm, with and without biases and norm gains."""

from __future__ import annotations

from typing import Any

import torch

from harness.case import Axis, Example, Inputs, Workload, flag
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase

OPT_125M = {"hidden_size": 768, "num_attention_heads": 12, "ffn_dim": 3072}
OPT_1300M = {"hidden_size": 2048, "num_attention_heads": 32, "ffn_dim": 8192}


class OPTCase(TransformersCase):
    name = "opt"
    title = "OPT decoder layer"
    configuration = "transformers:OPTConfig"
    model = "transformers:OPTModel"
    layer = "transformers.models.opt.modeling_opt:OPTDecoderLayer"
    axes = (
        hf.IMPLEMENTATION,
        hf.HEADS,
        hf.ODD_HEAD_SIZES,
        hf.INNER,
        Axis("activation", ("relu", *(one for one in hf.ACTIVATIONS.values if one != "relu"))),
        *hf.COMMON,
        flag("norm_before", simplest=True),
        flag("bias", simplest=True),
        flag("norm_affine", simplest=True),
        flag("projected_embeddings", simplest=False),
    )
    workloads = (
        Workload(name="opt-125m", phase="prefill", batch=1, tokens=128, config=OPT_125M, weight_bytes=28_400_000),
        Workload(name="opt-125m", phase="decode", batch=1, tokens=1, past=512, config=OPT_125M, weight_bytes=28_400_000),
        Workload(name="opt-1.3b", phase="prefill", batch=1, tokens=128, config=OPT_1300M, weight_bytes=201_500_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        hidden = example["heads"] * example["head_size"]
        return {
            "hidden_size": hidden,
            "num_attention_heads": example["heads"],
            "ffn_dim": example["inner"],
            "num_hidden_layers": example["layers"],
            "activation_function": example["activation"],
            "vocab_size": hf.VOCABULARY,
            "max_position_embeddings": hf.positions(example),
            "do_layer_norm_before": example["norm_before"],
            "enable_bias": example["bias"],
            "layer_norm_elementwise_affine": example["norm_affine"],
            "word_embed_proj_dim": hidden + 3 if example["projected_embeddings"] else hidden,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def inputs(self, example: Example) -> Inputs:
        inputs = super().inputs(example)
        if example["mask"].startswith("4d"):
            # OPT counts positions on a two-dimensional mask; with any other they have to be said.
            inputs.kwargs["position_ids"] = torch.arange(example["tokens"]).expand(example["batch"], -1)
        return inputs
