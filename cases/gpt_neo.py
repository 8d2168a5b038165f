"""GPT-Neo: global and local layers, windows shorter than the sequence."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.case import Axis, Example, Refusal, Workload
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase

NEO_125M = {"hidden_size": 768, "num_heads": 12, "num_layers": 12, "attention_types": [[["global", "local"], 6]]}
NEO_1300M = {
    "hidden_size": 2048,
    "num_heads": 16,
    "num_layers": 24,
    "attention_types": [[["global", "local"], 12]],
}


class GPTNeoCase(TransformersCase):
    name = "gpt_neo"
    title = "GPT-Neo block"
    configuration = "transformers:GPTNeoConfig"
    model = "transformers:GPTNeoModel"
    layer = "transformers.models.gpt_neo.modeling_gpt_neo:GPTNeoBlock"
    sdpa = False
    static_cache = False
    """Its own mask takes the last position of a preallocated cache for the latest token."""
    axes = (
        hf.EAGER_ONLY,
        hf.HEADS,
        hf.ODD_HEAD_SIZES,
        Axis("pattern", ("global", "local", "global, local", "local, global")),
        Axis("window", (4, 1, 2, 3, 16)),
        hf.INNER_OR_FOURFOLD,
        hf.ACTIVATIONS,
        hf.EPS,
        *hf.COMMON,
    )
    workloads = (
        Workload(name="gpt-neo-125m", phase="prefill", batch=1, tokens=128, config=NEO_125M, weight_bytes=28_400_000),
        Workload(name="gpt-neo-125m", phase="decode", batch=1, tokens=1, past=512, config=NEO_125M, weight_bytes=28_400_000),
        Workload(name="gpt-neo-1.3b", phase="prefill", batch=1, tokens=128, config=NEO_1300M, weight_bytes=201_500_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        layers = example["layers"]
        kinds = example["pattern"].split(", ")
        return {
            "hidden_size": example["heads"] * example["head_size"],
            "num_heads": example["heads"],
            "attention_types": [[[kinds[i % len(kinds)]], 1] for i in range(layers)],
            "window_size": example["window"],
            "intermediate_size": example["inner"],
            "num_layers": layers,
            "activation_function": example["activation"],
            "layer_norm_epsilon": example["eps"],
            "attention_dropout": 0.1,
            "resid_dropout": 0.1,
            "vocab_size": hf.VOCABULARY,
            "max_position_embeddings": hf.positions(example),
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def refusals(self) -> tuple[Refusal, ...]:
        holed = Refusal(name="a mask of another shape", feature="neither a causal mask", build=self._with_a_hole_in_the_mask)
        return (*super().refusals(), holed)

    def _with_a_hole_in_the_mask(self) -> nn.Module:
        model: Any = self.build(self.simplest)
        for block in model.h:
            block.attn.attention.bias[..., 3, 1] = False
        return model
