"""GPT-J."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from harness.case import Axis, Example, Workload
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase
from harness.hf.rotary import rotary_embeddings
from policies.releases import at_least

SIX_BILLION = {"n_embd": 4096, "n_head": 16, "rotary_dim": 64}


class GPTJCase(TransformersCase):
    name = "gptj"
    title = "GPT-J block"
    configuration = "transformers:GPTJConfig"
    model = "transformers:GPTJModel"
    layer = "transformers.models.gptj.modeling_gptj:GPTJBlock"
    sdpa = at_least("transformers", "5.24")
    axes = (
        hf.IMPLEMENTATION if sdpa else hf.EAGER_ONLY,
        hf.HEADS,
        hf.HEAD_SIZES,
        Axis("rotary", ("whole", "half", "two")),
        hf.INNER_OR_FOURFOLD,
        hf.ACTIVATIONS,
        hf.EPS,
        *hf.COMMON,
        hf.ROW_POSITIONS,
    )
    workloads = (
        Workload(name="gpt-j-6b", phase="prefill", batch=1, tokens=64, config=SIX_BILLION, weight_bytes=805_000_000),
        Workload(name="gpt-j-6b", phase="decode", batch=1, tokens=1, past=512, config=SIX_BILLION, weight_bytes=805_000_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        size = example["head_size"]
        return {
            "n_embd": example["heads"] * size,
            "n_head": example["heads"],
            "rotary_dim": {"whole": size, "half": max(size // 4 * 2, 2), "two": 2}[example["rotary"]],
            "n_inner": example["inner"],
            "n_layer": example["layers"],
            "activation_function": example["activation"],
            "layer_norm_epsilon": example["eps"],
            "vocab_size": hf.VOCABULARY,
            "n_positions": hf.positions(example),
            "attn_pdrop": 0.1,
            "resid_pdrop": 0.1,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def layer_extras(self, config: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
        if not self.sdpa:
            return {"position_ids": torch.arange(workload.tokens)[None] + workload.past}
        embedding = resolve_name("transformers.models.gptj.modeling_gptj:GPTJRotaryEmbedding")
        return rotary_embeddings(embedding(config), workload, hidden)
