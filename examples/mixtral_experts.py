"""Mixtral's experts, whose tokens are gathered and scattered once for all of them: a policy that puts in a layer of its own.

Shapes: N tokens, K experts to a token, E experts, D hidden size, F inner size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from policies.base import DSPolicy
from policies.swap import Swap


class GatheredExperts(MixtralExperts):
    """The original looks for each expert's tokens in a table of all, and adds each expert's results to the output by itself.
    Here tokens are sorted by expert and come back in one sum. Each expert is given the same rows in the same order."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(N, D), (N, K), (N, K) -> (N, D)"""
        if type(self) is not GatheredExperts or self._is_expert_parallel:
            # Reverted, while somebody holds this forward; or only some of the experts are here.
            return MixtralExperts.forward(self, hidden_states, top_k_index, top_k_weights)
        expert_of, order = top_k_index.t().flatten().sort(stable=True)
        token = order % hidden_states.shape[0]
        results = []
        for expert, rows in enumerate(hidden_states[token].split(torch.bincount(expert_of).tolist())):
            if rows.shape[0]:
                gate, up = F.linear(rows, self.gate_up_proj[expert]).chunk(2, dim=-1)
                results.append(F.linear(self.act_fn(gate) * up, self.down_proj[expert]))
        weighed = torch.cat(results) * top_k_weights.t().flatten()[order, None]
        return torch.zeros_like(hidden_states).index_add_(0, token, weighed.to(hidden_states.dtype))


class ChangeOfClass(Swap):
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def install(self) -> None:
        self.module.__class__ = GatheredExperts

    def revert(self) -> None:
        now = type(self.module)
        if now is GatheredExperts:
            self.module.__class__ = MixtralExperts
        else:  # a class that was put on top later, as a parametrization puts it
            now.__bases__ = tuple(MixtralExperts if one is GatheredExperts else one for one in now.__bases__)


class MixtralExpertsPolicy(DSPolicy):
    layer_classes = ("transformers.models.mixtral.modeling_mixtral:MixtralExperts",)

    @classmethod
    def plan(cls, module: nn.Module) -> Swap:
        return ChangeOfClass(module)
