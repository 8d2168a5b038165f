"""Checkpoints for tests: tiny models of transformers with a head, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn


def tiny(name: str = "LlamaForCausalLM", **changes: Any) -> Any:
    """A model of transformers with a head and random weights."""
    import transformers

    torch.manual_seed(0)
    settings = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12, "vocab_size": 32}
    if name == "OPTForCausalLM":
        settings |= {"word_embed_proj_dim": 8, "ffn_dim": 12}
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**settings | changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def llama() -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM


def save_in_shards(folder: Path) -> Path:
    """A checkpoint of a tiny Llama in several files."""
    tiny().save_pretrained(folder, max_shard_size="2KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder
