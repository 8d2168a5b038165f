"""A DeepSpeed of a few lines: enough of its modules for a policy to be asked, and policies for OPT that are right or wrong
in one thing each."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fake in the place of deepspeed."""
    contents: dict[str, dict[str, Any]] = {
        "deepspeed": {},
        "deepspeed.module_inject": {},
        "deepspeed.module_inject.policy": {"TransformerPolicy": SimpleNamespace(hf_model_config=None)},
        "deepspeed.module_inject.utils": {"policy_to_ds_container": lambda **_: None},
        "deepspeed.inference": {},
        "deepspeed.inference.config": {"DeepSpeedInferenceConfig": lambda **_: None},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


class Right:
    """Reads an OPT layer as it is: pre-norm, ReLU."""

    linear_layer, scale_attention, is_megatron_v2, split_qkv = True, True, False, True
    mlp_act_func_type, pre_attn_norm, norm_type = 2, True, 1

    def __init__(self, layer: Any, inference: bool = True) -> None:
        self.client_module = layer

    def attention(self) -> Any:
        own = self.client_module.self_attn
        three = (own.q_proj, own.k_proj, own.v_proj)
        weight, bias = (torch.cat([getattr(one, name) for one in three]) for name in ("weight", "bias"))
        return weight, bias, own.out_proj.weight, own.out_proj.bias

    def mlp(self) -> Any:
        layer = self.client_module
        return layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias

    def layernorm(self) -> Any:
        near, far = self.client_module.final_layer_norm, self.client_module.self_attn_layer_norm
        return near.weight, near.bias, far.weight, far.bias

    def get_hidden_heads(self) -> Any:
        layer = self.client_module
        return layer.embed_dim, layer.self_attn.num_heads, layer.final_layer_norm.eps, layer.fc1.out_features


class PostNorm(Right):
    pre_attn_norm = False


class SaysGelu(Right):
    mlp_act_func_type = 1


class Unscaled(Right):
    scale_attention = False


class InBlocks(Right):
    is_megatron_v2 = True


class SwappedNorms(Right):
    def layernorm(self) -> Any:
        near_weight, near_bias, far_weight, far_bias = super().layernorm()
        return far_weight, far_bias, near_weight, near_bias


class NoBias(Right):
    def attention(self) -> Any:
        qkv_weight, _, out_weight, out_bias = super().attention()
        return qkv_weight, None, out_weight, out_bias


class FourTimes(Right):
    def get_hidden_heads(self) -> Any:
        return (*super().get_hidden_heads()[:3], -1)


class Crashes(Right):
    def mlp(self) -> Any:
        return self.client_module.a_part_of_last_year


class TwoThings(PostNorm):
    mlp_act_func_type = 1


class Refuses(Right):
    def __init__(self, layer: Any, inference: bool = True) -> None:
        raise ValueError("Unsupported layer")
