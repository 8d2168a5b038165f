"""The cases: random tiny models, inputs and real sizes, one file an architecture.

An explicit tuple: to add an architecture is to add a page and a line here.
"""

from __future__ import annotations

from harness.registry import CaseEntry

CASES = (
    CaseEntry("bert", "cases.bert:BertCase", policy="bert"),
    CaseEntry("roberta", "cases.roberta:RobertaCase", policy="bert"),
    CaseEntry("gpt2", "cases.gpt2:GPT2Case", policy="gpt2"),
    CaseEntry("gptj", "cases.gptj:GPTJCase", policy="gptj"),
    CaseEntry("gpt_neo", "cases.gpt_neo:GPTNeoCase", policy="gpt_neo"),
    CaseEntry("gpt_neox", "cases.gpt_neox:GPTNeoXCase", policy="gpt_neox"),
    CaseEntry("bloom", "cases.bloom:BloomCase", policy="bloom"),
    CaseEntry("opt", "cases.opt:OPTCase", policy="opt"),
    CaseEntry("clip", "cases.clip:CLIPCase", policy="clip"),
    CaseEntry("llama", "cases.llama:LlamaCase", policy="llama"),
    CaseEntry("megatron", "cases.megatron:MegatronCase", policy="megatron"),
    CaseEntry("megatron_older", "cases.megatron_older:OlderMegatronCase", policy="megatron"),
    CaseEntry("unet", "cases.unet:UNetCase", policy="unet"),
    CaseEntry("vae", "cases.vae:VAECase", policy="vae"),
)
