"""Llama: grouped queries, every rotary scaling, biases on and off."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from harness.case import Axis, Example, Workload, flag
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase
from harness.hf.rotary import ROPE, rope_parameters, rotary_embeddings

LLAMA_1B = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
}
TINY_LLAMA = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 5632,
}


class LlamaCase(TransformersCase):
    name = "llama"
    title = "Llama decoder layer"
    configuration = "transformers:LlamaConfig"
    model = "transformers:LlamaModel"
    layer = "transformers.models.llama.modeling_llama:LlamaDecoderLayer"
    axes = (
        hf.IMPLEMENTATION,
        hf.KV_HEADS,
        hf.GROUP,
        hf.HEAD_SIZES,
        Axis("hidden_factor", (1, 2, 3), claimed=False, large=(32, 50, 64), largest=(2100, 4100)),
        ROPE,
        hf.INNER,
        Axis("activation", ("silu", *(one for one in hf.ACTIVATIONS.values if one != "silu"))),
        hf.EPS,
        *hf.COMMON,
        hf.ROW_POSITIONS,
        flag("attention_bias", simplest=False),
        flag("mlp_bias", simplest=False),
    )
    workloads = (
        Workload(name="llama-3.2-1b", phase="prefill", batch=1, tokens=128, config=LLAMA_1B, weight_bytes=243_300_000),
        Workload(name="llama-3.2-1b", phase="decode", batch=1, tokens=1, past=512, config=LLAMA_1B, weight_bytes=243_300_000),
        Workload(name="tinyllama-1.1b", phase="prefill", batch=1, tokens=128, config=TINY_LLAMA, weight_bytes=176_200_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        heads = example["kv_heads"] * example["group"]
        return {
            # The head size is given apart, so that hidden size and heads x head size differ in most examples.
            "hidden_size": heads * example["hidden_factor"] * 2,
            "head_dim": example["head_size"],
            "num_attention_heads": heads,
            "num_key_value_heads": example["kv_heads"],
            "intermediate_size": example["inner"],
            "num_hidden_layers": example["layers"],
            "hidden_act": example["activation"],
            "rms_norm_eps": example["eps"],
            "vocab_size": hf.VOCABULARY,
            "max_position_embeddings": hf.POSITIONS,
            "rope_parameters": rope_parameters(example["rope"], example["head_size"]),
            "attention_bias": example["attention_bias"],
            "mlp_bias": example["mlp_bias"],
            "attention_dropout": 0.1,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def layer_extras(self, config: Any, workload: Workload, hidden: Tensor) -> dict[str, Any]:
        embedding = resolve_name("transformers.models.llama.modeling_llama:LlamaRotaryEmbedding")
        return rotary_embeddings(embedding(config), workload, hidden)
