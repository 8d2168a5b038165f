"""In what form a layer hands its output back, which changed between releases of transformers.

Older ones wrap a layer's tensor in a tuple, with the attention weights behind it when they are asked for; newer ones
return the tensor. Nothing but the forward's own code tells, so that is what is read.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from torch import Tensor, nn

from ..calls import Returns
from ..source import own_returns


def form_of(original: type[nn.Module], declared: Returns) -> Returns:
    """The form that ``original.forward`` uses, where its policy says ``declared``."""
    if declared is Returns.TENSOR and _returns_tuple(original):
        return Returns.TENSOR_ALONE
    return declared


def in_form(form: Returns, hidden: Tensor, context: Any) -> Any:
    match form:
        case Returns.TENSOR:
            return hidden
        case Returns.TENSOR_ALONE:
            return (hidden,)
        case Returns.TENSOR_AND_WEIGHTS:
            return hidden, None
        case Returns.TENSOR_AND_CONTEXT:
            return hidden, context


def _returns_tuple(original: type[nn.Module]) -> bool:
    """Whether the last ``return`` of ``original.forward`` hands back a tuple, or a name that was given one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(original.forward)))
    except (OSError, SyntaxError):
        return False
    returned = own_returns(tree.body[0])[-1:]
    names = {one.id for one in returned if isinstance(one, ast.Name)}
    assigned = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id in names for target in node.targets)
    ]
    return any(isinstance(one, ast.Tuple) for one in (*returned, *assigned))
