"""What a loader or an owner may have made of a model before it is replaced: the same function in other clothes.

``strided`` weights have the strides of a transposed matrix, as checkpoints leave them that were stored the other way
round. ``different`` eps gives every second norm another eps than the configuration says.
"""

from __future__ import annotations

from torch import nn

from ..case import Axis, Example

WEIGHTS = Axis("weights", ("contiguous", "strided"))
NORM_EPS = Axis("norm_eps", ("same", "different"))
FACTOR = 300.0
"""Between the eps of one norm and that of the next."""


def make_unusual(model: nn.Module, example: Example) -> nn.Module:
    """Change ``model`` in place as ``example`` says, where its case has these axes. Returns ``model``."""
    if example.values.get(WEIGHTS.name) == "strided":
        for module in model.modules():
            if type(module).__name__ in ("Linear", "Conv1D"):
                weight = module.get_parameter("weight")
                weight.data = weight.data.t().contiguous().t()
    if example.values.get(NORM_EPS.name) == "different":
        names = [(module, name) for module in model.modules() for name in ("eps", "variance_epsilon") if hasattr(module, name)]
        for module, name in names[::2]:
            setattr(module, name, getattr(module, name) * FACTOR)
    return model
