"""torchao's int8 weights: every linear layer's weight is kept as int8 with one scale a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changed import Changed, NothingChanged, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    from torch.nn import Linear, Parameter
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    # Its tensors are Parameters of a class of their own. Layers that are no nn.Linear (GPT-2's Conv1D) are passed over.
    done = any(isinstance(one, Linear) and type(one.weight.data) is not type(Parameter().data) for one in model.modules())
    if not done:
        raise NothingChanged("quantize_ changed nothing and said nothing: the model has no nn.Linear")
    return as_a_whole(model, "torchao int8 weights")
