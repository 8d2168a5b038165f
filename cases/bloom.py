"""BLOOM."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from harness.case import Axis, Example, Refusal, Workload, flag
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase
from policies.releases import at_least

BLOOM_560M = {"hidden_size": 1024, "n_head": 16}
BLOOM_1700M = {"hidden_size": 2048, "n_head": 16}


class BloomCase(TransformersCase):
    name = "bloom"
    title = "BLOOM block"
    configuration = "transformers:BloomConfig"
    model = "transformers:BloomModel"
    layer = "transformers.models.bloom.modeling_bloom:BloomBlock"
    sdpa = False
    static_cache = at_least("transformers", "5.22")
    """Before, BLOOM's own ALiBi does not fit a preallocated cache."""
    axes = (
        hf.EAGER_ONLY,
        Axis("heads", (2, 1, 3, 4, 5, 6, 7, 8, 12), large=(1, 2, 3), largest=(71, 128)),
        hf.ODD_HEAD_SIZES,
        hf.EPS,
        *hf.SIZES,
        hf.MASK_2D,
        flag("residual_after_norm", simplest=False),
        Axis("pretraining_tp", (1, 2)),
    )
    workloads = (
        Workload(name="bloom-560m", phase="prefill", batch=1, tokens=128, config=BLOOM_560M, weight_bytes=50_400_000),
        Workload(name="bloom-560m", phase="decode", batch=1, tokens=1, past=512, config=BLOOM_560M, weight_bytes=50_400_000),
        Workload(name="bloom-1b7", phase="prefill", batch=1, tokens=128, config=BLOOM_1700M, weight_bytes=201_500_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {
            "hidden_size": example["heads"] * example["head_size"],
            "n_head": example["heads"],
            "n_layer": example["layers"],
            "layer_norm_epsilon": example["eps"],
            # Off by default, unlike other families': then nothing would tell training from evaluation.
            "hidden_dropout": 0.1,
            "attention_dropout": 0.1,
            "vocab_size": hf.VOCABULARY,
            "apply_residual_connection_post_layernorm": example["residual_after_norm"],
            "pretraining_tp": example["pretraining_tp"],
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def refusals(self) -> tuple[Refusal, ...]:
        sliced = Refusal(
            name="slow but exact",
            feature="slow_but_exact",
            build=lambda: self.build(self.simplest, slow_but_exact=True, pretraining_tp=2),
        )
        weighted = Refusal(name="weighted ALiBi", feature="beta", build=self._with_weighted_alibi)
        return (*super().refusals(), sliced, weighted)

    def _with_weighted_alibi(self) -> nn.Module:
        model: Any = self.build(self.simplest)
        for block in model.h:
            block.self_attention.beta = 0.5
        return model

    def layer_extras(self, config: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
        build = resolve_name("transformers.models.bloom.modeling_bloom:build_alibi_tensor")
        mask = torch.ones(workload.batch, workload.keys)
        return {"alibi": build(mask, config.n_head, torch.float32)}
