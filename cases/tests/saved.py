"""Checkpoints for tests: tiny models with a head, saved; what the library makes of one; and whether two models are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import CASES

SAVED = [entry for entry in CASES if entry.unavailable is None and not entry.name.startswith("megatron")]
"""Cases whose models have a ``save_pretrained``."""


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


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under each of its names, buffers that are not saved among them."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def same(one: nn.Module, other: nn.Module) -> None:
    first, second = tensors(one), tensors(other)
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype is second[name].dtype, name
        assert first[name].requires_grad is second[name].requires_grad, name
        assert torch.equal(first[name], second[name]), name
    ties = [{name: names[id(t)] for name, t in found.items()} for found in (first, second) for names in [first_names(found)]]
    assert ties[0] == ties[1]
    assert [type(module).__qualname__ for module in one.modules()] == [type(module).__qualname__ for module in other.modules()]
    assert [module.training for module in one.modules()] == [module.training for module in other.modules()]


def first_names(found: dict[str, torch.Tensor]) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, tensor in found.items():
        names.setdefault(id(tensor), name)
    return names


def loaded(model: type, folder: Path, dtype: torch.dtype, **kwargs: Any) -> Any:
    """What the library itself makes of the checkpoint."""
    arguments = {"torch_dtype": dtype, "low_cpu_mem_usage": False} if hasattr(model, "load_config") else {"dtype": dtype}
    return model.from_pretrained(folder, **arguments, **kwargs).eval()  # type: ignore[attr-defined]
