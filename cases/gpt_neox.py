"""GPT-NeoX (Pythia)."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from harness.case import Axis, Example, Workload, flag
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase
from harness.hf.rotary import ROPE, rope_parameters, rotary_embeddings

PYTHIA_410M = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
PYTHIA_70M = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
ROTARY_QUARTER = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}


class GPTNeoXCase(TransformersCase):
    name = "gpt_neox"
    title = "GPT-NeoX layer"
    configuration = "transformers:GPTNeoXConfig"
    model = "transformers:GPTNeoXModel"
    layer = "transformers.models.gpt_neox.modeling_gpt_neox:GPTNeoXLayer"
    axes = (
        hf.IMPLEMENTATION,
        hf.HEADS,
        hf.HEAD_SIZES,
        Axis("rotary_factor", (1.0, 0.5, 0.25)),
        ROPE,
        hf.INNER,
        hf.ACTIVATIONS,
        hf.EPS,
        *hf.COMMON,
        hf.ROW_POSITIONS,
        flag("parallel_residual", simplest=True),
        flag("attention_bias", simplest=True),
    )
    workloads = (
        Workload(
            name="pythia-70m",
            phase="prefill",
            batch=1,
            tokens=128,
            config=PYTHIA_70M | ROTARY_QUARTER,
            weight_bytes=12_600_000,
        ),
        Workload(
            name="pythia-410m",
            phase="prefill",
            batch=1,
            tokens=128,
            config=PYTHIA_410M | ROTARY_QUARTER,
            weight_bytes=50_400_000,
        ),
        Workload(
            name="pythia-410m",
            phase="decode",
            batch=1,
            tokens=1,
            past=512,
            config=PYTHIA_410M | ROTARY_QUARTER,
            weight_bytes=50_400_000,
        ),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        size = example["head_size"]
        # A factor that leaves an odd number of rotated elements is refused by the original itself.
        factor = example["rotary_factor"] if size * example["rotary_factor"] % 2 == 0 else 1.0
        return {
            "hidden_size": example["heads"] * size,
            "num_attention_heads": example["heads"],
            "intermediate_size": example["inner"],
            "num_hidden_layers": example["layers"],
            "hidden_act": example["activation"],
            "layer_norm_eps": example["eps"],
            "vocab_size": hf.VOCABULARY,
            "max_position_embeddings": hf.POSITIONS,
            "rope_parameters": rope_parameters(example["rope"], int(size * factor)) | {"partial_rotary_factor": factor},
            "rotary_pct": factor,  # transformers 5.4 overwrites the factor above by this one
            "use_parallel_residual": example["parallel_residual"],
            "attention_bias": example["attention_bias"],
            "attention_dropout": 0.1,
            "hidden_dropout": 0.1,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def layer_extras(self, config: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
        embedding = resolve_name("transformers.models.gpt_neox.modeling_gpt_neox:GPTNeoXRotaryEmbedding")
        return rotary_embeddings(embedding(config), workload, hidden)
