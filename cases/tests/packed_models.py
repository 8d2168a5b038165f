"""Models whose weights are packed, for tests."""

from __future__ import annotations

import torch
from torch import nn

import policies
from harness.case import Case, Inputs
from policies.fused.packed import PackedParameter


def ready(case: Case) -> tuple[nn.Module, Inputs]:
    model = case.build(case.simplest)
    policies.replace_module(model, plan="packed")
    return model, case.inputs(case.simplest)


def output(case: Case, model: nn.Module, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(case.run(model, inputs).values()))


def packed(model: nn.Module) -> list[str]:
    return [name for name, one in model.named_parameters() if type(one) is PackedParameter]
