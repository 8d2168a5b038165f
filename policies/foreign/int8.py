"""torchao's int8 weights: every linear layer's weight is kept as int8 with one scale a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .changed import Changed, NothingChanged, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    from torchao.quantization import Int8WeightOnlyConfig

    return quantised(model, Int8WeightOnlyConfig(), "torchao int8 weights")


def quantised(model: nn.Module, config: Any, by: str) -> Changed:
    """``model`` after torchao's ``quantize_`` with ``config``. Raises ``NothingChanged``."""
    from torch.nn import Linear, Parameter
    from torchao.quantization import quantize_

    quantize_(model, config)
    # Its tensors are Parameters of a class of their own. Layers that are no nn.Linear (GPT-2's Conv1D) are passed over.
    done = any(isinstance(one, Linear) and type(one.weight.data) is not type(Parameter().data) for one in model.modules())
    if not done:
        raise NothingChanged("quantize_ changed nothing and said nothing: the model has no nn.Linear")
    return as_a_whole(model, by)
