"""torchao's int8 dynamic quantisation: int8 weights, one scale a row, times inputs rounded to int8 as they come, one scale
a token.

Its default configuration, which uses all of int8's range. torchao's own words are that the product may then overflow on a
CPU without VNNI, and that ``reduce_range`` is for those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changed import Changed
from .int8 import quantised

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return quantised(model, Int8DynamicActivationInt8WeightConfig(), "torchao int8 weights and inputs")
