"""GPT-2, with and without cross-attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from harness.case import Example, Inputs, Workload, flag
from harness.hf import inputs as hf
from harness.hf.case import TransformersCase

SMALL = {"n_embd": 768, "n_head": 12}
MEDIUM = {"n_embd": 1024, "n_head": 16}


class GPT2Case(TransformersCase):
    name = "gpt2"
    title = "GPT-2 block"
    configuration = "transformers:GPT2Config"
    model = "transformers:GPT2Model"
    layer = "transformers.models.gpt2.modeling_gpt2:GPT2Block"
    axes = (
        flag("cross_attention", simplest=False),
        hf.IMPLEMENTATION,
        hf.HEADS,
        hf.ODD_HEAD_SIZES,
        hf.INNER_OR_FOURFOLD,
        hf.ACTIVATIONS,
        hf.EPS,
        *hf.COMMON,
        flag("scale_attn_weights", simplest=True),
        flag("scale_by_inverse_layer_index", simplest=False),
        flag("reorder_and_upcast", simplest=False),
        hf.SOURCE_TOKENS,
    )
    workloads = (
        Workload(name="gpt2", phase="prefill", batch=1, tokens=128, config=SMALL, weight_bytes=28_400_000),
        Workload(name="gpt2", phase="decode", batch=1, tokens=1, past=512, config=SMALL, weight_bytes=28_400_000),
        Workload(name="gpt2-medium", phase="prefill", batch=1, tokens=512, config=MEDIUM, weight_bytes=50_400_000),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {
            "n_embd": example["heads"] * example["head_size"],
            "n_head": example["heads"],
            "n_inner": example["inner"],
            "n_layer": example["layers"],
            "activation_function": example["activation"],
            "layer_norm_epsilon": example["eps"],
            "vocab_size": hf.VOCABULARY,
            "n_positions": hf.positions(example),
            "add_cross_attention": example["cross_attention"],
            "scale_attn_weights": example["scale_attn_weights"],
            "scale_attn_by_inverse_layer_idx": example["scale_by_inverse_layer_index"],
            "reorder_and_upcast_attn": example["reorder_and_upcast"],
            "bos_token_id": None,
            "eos_token_id": None,
        }

    @property
    def complete(self) -> Example:
        return self.simplest.with_value("cross_attention", True)

    def inputs(self, example: Example) -> Inputs:
        inputs = super().inputs(example)
        if not example["cross_attention"]:
            return inputs
        extra = hf.encoder_states(example, example["heads"] * example["head_size"])
        return Inputs(kwargs={**inputs.kwargs, **extra}, valid=inputs.valid)

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Let ``reorder_and_upcast_attn`` run in exact mode: it insists that its scores be ``torch.float32``, a name that
        has to mean float64 there. Only this module's view of ``torch`` is changed, and only while float64 is default."""
        from transformers.models.gpt2 import modeling_gpt2

        with mock.patch.object(modeling_gpt2, "torch", _Torch()):
            yield


class _Torch:
    """``torch``, with ``float32`` standing for the default dtype."""

    def __getattr__(self, name: str) -> Any:
        if name == "float32":
            return torch.get_default_dtype()
        return getattr(torch, name)
