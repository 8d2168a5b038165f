"""Scripts that show a fault of a foreign policy by themselves: torch, the model library, DeepSpeed, nothing else.

Each is run here once before it is kept.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import textwrap
from typing import Any

import torch

from ..case import Case, Example
from ..evidence.constructed import construction
from .bodies import BODIES
from .rows import META_NAMES, Row, _as_internlm, _as_meta_llama

SHOWS = 1
"""Exit status of a script that shows its fault."""

_HEAD = '''"""{title}

Needs torch, {library} and deepspeed. Exit status 1 and one line: the fault shows; 0: it does not.
"""

from __future__ import annotations

import sys
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
{imports}
from deepspeed.module_inject.policy import TransformerPolicy
from deepspeed.module_inject.replace_policy import {policy}
'''

_MAIN = '''

def made():
    """The layer, and the policy as DeepSpeed's injection makes it."""
    torch.manual_seed(0)
    model = build()
    layer = {layer}
    TransformerPolicy.hf_model_config = getattr(model, "config", None)
    return model, layer, {policy}({client}, inference=True)


@torch.no_grad()
def main() -> int:
{body}

if __name__ == "__main__":
    sys.exit(main())
'''

_MEGATRON = """

def build():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.Module()
            self.attention.query_key_value, self.attention.dense = nn.Linear(8, 24), nn.Linear(8, 8)
            self.attention.num_attention_heads = 2
            self.activation_func = {activation}
            self.mlp = nn.Module()
            self.mlp.dense_h_to_4h, self.mlp.dense_4h_to_h = nn.Linear(8, 16), nn.Linear(16, 8)
            self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(8), nn.LayerNorm(8)

    return Layer()
"""


def write(row: Row, fault: str, title: str, case: Case, example: Example, paths: dict[str, Any]) -> str | None:
    """The script for one fault, or None where there is no telling it so."""
    body = BODIES.get(fault)
    if body is None:
        return None
    layer, client, dress = _layer(row, paths)
    imports: list[str] = []
    if row.policy == "MegatronLayerPolicy":
        function = "torch.tanh" if example["activation"] == "tanh" else f"F.{example['activation']}"
        built, library = _MEGATRON.format(activation=function), "no model library"
    else:
        source, imports = construction(case, example)
        built, library = f"\n\ndef build():\n{source}    return model\n", imports[0].split()[1].partition(".")[0]
    head = _HEAD.format(title=title, library=library, imports="\n".join(imports), policy=row.policy)
    body = textwrap.indent(textwrap.dedent(body.format(policy=row.policy, **paths)).strip("\n"), "    ") + "\n"
    return head + built + dress + _MAIN.format(layer=layer, policy=row.policy, client=client, body=body)


def _layer(row: Row, paths: dict[str, Any]) -> tuple[str, str, str]:
    """How the script finds the layer, what it gives the policy, and what it needs for that."""
    found = f'next(one for one in model.modules() if type(one).__name__ == "{paths["layer_class"]}")'
    if row.dress is None:
        return found, "layer", ""
    if row.policy == "MegatronLayerPolicy":
        return "model", "layer", ""
    function: Any = row.dress
    source = inspect.getsource(function)
    names = f"\n\nMETA_NAMES = {META_NAMES!r}\n" if function is _as_meta_llama else ""
    assert function in (_as_internlm, _as_meta_llama)
    return found, f"{function.__name__}(layer)", f"{names}\n\n{source}"


def shows(script: str | None) -> bool:
    """Run ``script``, where there is one, here and tell whether it shows its fault."""
    if script is None:
        return False
    namespace: dict[str, Any] = {"__name__": "script"}
    from deepspeed.module_inject.policy import TransformerPolicy

    before = TransformerPolicy.hf_model_config
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), torch.random.fork_rng(devices=[]):
            exec(compile(script, "script", "exec"), namespace)
            return bool(namespace["main"]() == SHOWS) and bool(output.getvalue().strip())
    except Exception:
        return False
    finally:
        TransformerPolicy.hf_model_config = before
