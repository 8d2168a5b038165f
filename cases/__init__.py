"""The cases: random tiny models, inputs and real sizes, one file an architecture.

``CASES`` names them without importing any; ``load_case(name)`` imports one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.case import Case

CASES = (
    "cases.bert:BertCase",
    "cases.roberta:RobertaCase",
    "cases.gpt2:GPT2Case",
    "cases.gptj:GPTJCase",
    "cases.gpt_neo:GPTNeoCase",
    "cases.gpt_neox:GPTNeoXCase",
    "cases.bloom:BloomCase",
    "cases.opt:OPTCase",
    "cases.clip:CLIPCase",
    "cases.llama:LlamaCase",
)
