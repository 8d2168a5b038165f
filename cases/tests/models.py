"""Models of a few cases, for tests of what is the same for all."""

from __future__ import annotations

from torch import nn

from cases.bert import BertCase
from cases.gpt2 import GPT2Case
from cases.llama import LlamaCase
from harness.case import Case, Value

CASES: tuple[Case, ...] = (BertCase(), GPT2Case(), LlamaCase())


def model_of(case: Case, **values: Value) -> nn.Module:
    example = case.simplest
    for axis, value in values.items():
        example = example.with_value(axis, value)
    return case.build(example)
