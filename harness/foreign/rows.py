"""Which of DeepSpeed's policies is judged on which layer.

Three of them are for layer classes that no installable package has. They are judged on a stand-in: a layer that computes
what theirs computed, under the names that the policy looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from torch import nn

from ..case import Value


@dataclass(frozen=True, kw_only=True)
class Row:
    """``case`` names a case, or is ``module:Class`` of a layer to derive one for. ``own`` is our policy for the layer.
    ``live`` is the layer class that the policy is for; None: there is none to be had, as ``stand_in`` explains.
    ``only`` keeps examples to what the original class could be; ``looks_for`` is what the policy tries to import."""

    policy: str
    case: str
    own: str
    live: str | None
    only: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    stand_in: str = ""
    looks_for: str = ""
    dress: Callable[[nn.Module], Any] | None = None


def _as_internlm(layer: Any) -> Any:
    """InternLM's layer is Llama's with biases in the attention, of transformers 4.31: its attention knows its heads."""
    own = layer.self_attn
    attention = SimpleNamespace(**own._modules, num_heads=own.config.num_attention_heads)
    return SimpleNamespace(**{**layer._modules, "self_attn": attention}, state_dict=layer.state_dict)


META_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""transformers' names for the parts of a Llama layer, and those of Meta's own code (``llama/model.py``)."""


def _as_meta_llama(layer: Any) -> Any:
    config, attention, mlp = layer.self_attn.config, layer.self_attn, layer.mlp

    def norm(one: Any) -> Any:
        return SimpleNamespace(weight=one.weight, eps=one.variance_epsilon)

    def named() -> dict[str, Any]:
        parts = {name: name.rpartition(".") for name in layer.state_dict()}
        return {f"{META_NAMES[owner]}.{last}": layer.state_dict()[name] for name, (owner, _, last) in parts.items()}

    return SimpleNamespace(
        n_heads=config.num_attention_heads,
        attention=SimpleNamespace(
            wq=attention.q_proj,
            wk=attention.k_proj,
            wv=attention.v_proj,
            wo=attention.o_proj,
            n_kv_heads=config.num_key_value_heads,
        ),
        feed_forward=SimpleNamespace(w1=mlp.gate_proj, w2=mlp.down_proj, w3=mlp.up_proj),
        attention_norm=norm(layer.input_layernorm),
        ffn_norm=norm(layer.post_attention_layernorm),
        state_dict=named,
    )


class _Megatron(nn.Module):
    """A ``ParallelTransformerLayer`` whose attention is called ``attention`` and counts its heads."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attention
        attention.num_attention_heads = attention.num_attention_heads_per_partition
        self.attention, self.mlp = attention, layer.mlp
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm


_HF = "transformers.models"
_LLAMA_LIKE: dict[str, tuple[Value, ...]] = {
    "mlp_bias": (False,),
    "hidden_factor": (2,),
    "head_size": (4,),
    "activation": ("silu",),
}

ROWS = (
    Row(
        policy="HFBertLayerPolicy", case="bert", own="policies.bert:HFBertLayerPolicy", live=f"{_HF}.bert.modeling_bert:BertLayer"
    ),
    Row(
        policy="HFGPTNEOLayerPolicy",
        case="gpt_neo",
        own="policies.gpt_neo:HFGPTNEOLayerPolicy",
        live=f"{_HF}.gpt_neo.modeling_gpt_neo:GPTNeoBlock",
    ),
    Row(
        policy="GPTNEOXLayerPolicy",
        case="gpt_neox",
        own="policies.gpt_neox:GPTNEOXLayerPolicy",
        live=f"{_HF}.gpt_neox.modeling_gpt_neox:GPTNeoXLayer",
    ),
    Row(
        policy="HFGPTJLayerPolicy", case="gptj", own="policies.gptj:HFGPTJLayerPolicy", live=f"{_HF}.gptj.modeling_gptj:GPTJBlock"
    ),
    Row(
        policy="MegatronLayerPolicy",
        case="megatron_older",
        own="policies.megatron_older:OlderMegatronLayerPolicy",
        live=None,
        only={"hidden": (8,), "head_size": (4,), "groups": (2,), "queries_per_group": (1,), "layer_scaling": (False,)},
        stand_in="a ParallelTransformerLayer of the same parts",
        looks_for="megatron.model.transformer.ParallelTransformerLayer, which is in no package",
        dress=_Megatron,
    ),
    Row(
        policy="HFGPT2LayerPolicy", case="gpt2", own="policies.gpt2:HFGPT2LayerPolicy", live=f"{_HF}.gpt2.modeling_gpt2:GPT2Block"
    ),
    Row(
        policy="BLOOMLayerPolicy",
        case="bloom",
        own="policies.bloom:BLOOMLayerPolicy",
        live=f"{_HF}.bloom.modeling_bloom:BloomBlock",
    ),
    Row(
        policy="HFOPTLayerPolicy", case="opt", own="policies.opt:HFOPTLayerPolicy", live=f"{_HF}.opt.modeling_opt:OPTDecoderLayer"
    ),
    Row(
        policy="HFCLIPLayerPolicy",
        case="clip",
        own="policies.clip:HFCLIPLayerPolicy",
        live=f"{_HF}.clip.modeling_clip:CLIPEncoderLayer",
    ),
    Row(
        policy="HFDistilBertLayerPolicy",
        case=f"{_HF}.distilbert.modeling_distilbert:TransformerBlock",
        own="policies.foreign.distilbert:DistilBertLayerPolicy",
        live=f"{_HF}.distilbert.modeling_distilbert:TransformerBlock",
    ),
    Row(
        policy="LLAMALayerPolicy",
        case="llama",
        own="policies.llama:LlamaLayerPolicy",
        live=f"{_HF}.llama.modeling_llama:LlamaDecoderLayer",
        only={"hidden_factor": (2, 1, 3)},
    ),
    Row(
        policy="LLAMA2LayerPolicy",
        case="llama",
        own="policies.llama:LlamaLayerPolicy",
        live=None,
        only=_LLAMA_LIKE | {"attention_bias": (False,)},
        stand_in="a Llama layer under the names of Meta's llama/model.py",
        looks_for="llama.model.TransformerBlock of Meta's own repository, which is in no package",
        dress=_as_meta_llama,
    ),
    Row(
        policy="InternLMLayerPolicy",
        case="llama",
        own="policies.llama:LlamaLayerPolicy",
        live=None,
        only=_LLAMA_LIKE | {"attention_bias": (True,), "group": (1,)},
        stand_in="a Llama layer with biases in its attention",
        looks_for="transformers_modules.internlm-7b.modeling_internlm, a name that transformers no longer gives to code that "
        "comes with a checkpoint (it writes internlm_hyphen_7b and a hash)",
        dress=_as_internlm,
    ),
)
"""The policies for transformer layers, in DeepSpeed's order."""
