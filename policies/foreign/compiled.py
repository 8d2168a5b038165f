"""torch.compile of a whole model, as PyTorch makes it by default but for code generation.

Captured by dynamo and lowered by AOTAutograd, run by the operators themselves: what is judged is whether the captured
program is the model, on any call. Inductor's generated code is another matter, and takes seconds of compiler an example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .changed import Changed, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    return as_a_whole(compiled, "torch.compile", torch.compiler.reset, was=model)  # type: ignore[arg-type]  # it is a module
