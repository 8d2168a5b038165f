"""Writing a policy's page from what was found of a layer.

What was not found stands in the page as ``TODO("...")``, which raises and names its line: ``validate`` goes from one to
the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from policies.anatomy import QKVLayout, RotaryStyle

from .inspection import Inspection
from .norms import NormFound


@dataclass(frozen=True)
class Choices:
    """What values do not show and is found by trying: how a fused projection is laid out, and which elements rotate."""

    layout: QKVLayout = QKVLayout.BLOCKED
    style: RotaryStyle = RotaryStyle.HALF


def write_page(name: str, found: Inspection, choices: Choices, plain: dict[str, Any]) -> str:
    """Source of the policy ``name``. ``plain``: configuration fields that have to stay at these values."""
    module, _, layer = found.layer.partition(":")
    todo = "".join(f"    TODO: {one}\n" for one in found.open)
    body = [*_read(found, choices), *_linear_function(found), *_norm_function(found)]
    parts = [
        _head(layer, todo),
        _imports(found, body),
        f'_MODELING = "{module}"',
        _plain(plain),
        _todo_function(body),
        f"class {name}(AnatomyPolicy):",
        f'    layer_classes = (f"{{_MODELING}}:{layer}",)',
        f"    call = {_call(found)}",
        "",
        "    @classmethod",
        "    def read(cls, layer: Any) -> LayerAnatomy:",
        *_checks(found, bool(plain)),
        *body,
        "",
    ]
    return "\n".join(part for part in parts if part is not None)


def _head(layer: str, todo: str) -> str:
    open_points = f"\n\n{todo.rstrip()}\n" if todo else ""
    written = "Written by `harness new`; prove it with `harness validate`."
    return (
        f'"""{layer}, read into an anatomy. {written}{open_points}"""\n\n'
        "from __future__ import annotations\n\nfrom typing import Any\n"
    )


def _imports(found: Inspection, body: list[str]) -> str:
    text = "\n".join(body)
    wanted = [
        "MLP",
        "Attention",
        "Causality",
        "FusedQKV",
        "LayerAnatomy",
        "Linear",
        "Norm",
        "NormKind",
        "NormPosition",
        "QKVLayout",
        "Rotary",
        "RotaryStyle",
        "SplitQKV",
    ]
    used = [name for name in wanted if name == "LayerAnatomy" or _mentions(text, name)]
    calls = ["HF_IGNORED", "CallConvention"]
    calls += ["Returns"] if found.returns_tuple else []
    calls += ["RotarySource"] if found.rotary else []
    return (
        _from("policies.anatomy", used) + "\nfrom policies.base import AnatomyPolicy\n" + _from("policies.calls", calls)
    ) + "\n"


def _from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= 120:
        return line
    inner = "".join(f"    {name},\n" for name in names)
    return f"from {module} import (\n{inner})"


def _mentions(text: str, name: str) -> bool:
    return bool(re.search(rf"\b{name}[(.:]", text))


def _plain(plain: dict[str, Any]) -> str | None:
    if not plain:
        return None
    fields = ", ".join(f'"{name}": {value!r}' for name, value in plain.items())
    return f'_PLAIN = {{{fields}}}\n"""Fields that change what a layer computes, at the values described here."""'


def _todo_function(body: list[str]) -> str:
    if not any("TODO(" in line for line in body):
        return "\n"
    return (
        "\n\ndef TODO(what: str) -> Any:  # noqa: N802\n"
        '    """Remove this when nothing is left to settle."""\n'
        '    raise NotImplementedError(f"still to be settled: {what}")\n\n'
    )


def _call(found: Inspection) -> str:
    arguments = []
    if found.returns_tuple:
        arguments.append("returns=Returns.TENSOR_AND_WEIGHTS")
    if found.rotary:
        arguments.append("rotary=RotarySource.EMBEDDINGS")
    ignored = 'HF_IGNORED | {"is_causal"}' if found.deaf else "HF_IGNORED"
    return f"CallConvention({', '.join([*arguments, f'ignored={ignored}'])})"


def _checks(found: Inspection, refuses: bool) -> list[str]:
    """Lines that make sure of the classes, because their code is what was looked at."""
    lines = []
    if found.attention_path:
        cls = found.attention_class.partition(":")[2]
        lines.append(f'own = layer.transformers_attention("{found.attention_path}", f"{{_MODELING}}:{cls}")')
    else:
        lines.append('own = TODO("layer.transformers_attention(path, class)")')
    for path, class_name in found.containers.items():
        module, _, cls = class_name.partition(":")
        named = f'f"{{_MODELING}}:{cls}"' if module == found.layer.partition(":")[0] else f'"{class_name}"'
        lines.append(f'layer.module("{path}", {named})')
    lines += [f'layer.constant("{path}", {value})' for path, value in found.constants.items()]
    if refuses:
        lines += [
            "for name, value in _PLAIN.items():",
            "    if getattr(own.config, name) != value:",
            '        raise layer.refuse(f"{name}={getattr(own.config, name)!r}")',
        ]
    if found.query:
        lines.append(f"key = {_linear(found, found.key)}")
        lines.append("kv_heads = key.weight.shape[0] // " + _head_size(found))
    return ["        " + line for line in lines]


def _read(found: Inspection, choices: Choices) -> list[str]:
    lines = [
        "return LayerAnatomy(",
        "    attention=Attention(",
        *("        " + line for line in _attention_lines(found, choices)),
        "    ),",
        *("    " + line for line in _mlp_lines(found)),
        f"    attention_norm={_norm(found.attention_norm, 'which norm stands at the attention')},",
        f"    mlp_norm={_mlp_norm(found)},",
        f"    norm_position=NormPosition.{'POST' if found.post_norm else 'PRE'},",
        f"    hidden_size={_linear(found, found.out)}.weight_out_in.shape[0],",
    ]
    if found.parallel:
        lines.append("    parallel=True,")
    return ["        " + line for line in [*lines, ")"]]


def _head_size(found: Inspection) -> str:
    return f"own.{found.head_size}" if found.head_size else 'TODO("head size")'


def _attention_lines(found: Inspection, choices: Choices) -> list[str]:
    size = _head_size(found)
    if found.query:
        qkv = f"SplitQKV(query={_linear(found, found.query)}, key=key, value={_linear(found, found.value)})"
        kv_heads = "kv_heads"
        heads = f"own.{found.heads}" if found.heads else f"kv_heads{' * own.num_key_value_groups' if found.grouped else ''}"
    else:
        qkv = f"FusedQKV(linear={_linear(found, found.fused)}, layout=QKVLayout.{choices.layout.name})"
        heads = f"own.{found.heads}" if found.heads else 'TODO("heads")'
        kv_heads = f"own.{found.kv_heads}" if found.kv_heads else heads
    lines = [
        f"qkv={qkv},",
        f"out={_linear(found, found.out)},",
        f"heads={heads},",
        f"kv_heads={kv_heads},",
        f"head_size={size},",
        f"scale={f'own.{found.scale}' if found.scale else f'{size} ** -0.5'},",
        f"causality={'layer.causality(own)' if found.causal_flag else 'Causality.NEVER'},",
        "module=own,",
    ]
    if found.cache_index:
        lines.append(f"cache_index=own.{found.cache_index},")
    if found.rotary:
        turned = f"own.{found.rotary_size}" if found.rotary_size else None
        lines.append(f"rotary=Rotary(style=RotaryStyle.{choices.style.name}, size={turned}),")
    if found.alibi:
        lines.append("alibi=True,")
    for name, norm in (("query_norm", found.query_norm), ("key_norm", found.key_norm)):
        if norm is not None:
            lines.append(f"{name}={_norm(norm, name)},")
    return lines


def _mlp_lines(found: Inspection) -> list[str]:
    arguments = [
        (name, path)
        for name, path in (("gate", found.gate), ("up", found.up), ("gate_up", found.gate_up), ("down", found.down))
        if path
    ]
    if not found.down:
        return ['mlp=TODO("the MLP"),']
    lines = [f"    {name}={_linear(found, path)}," for name, path in arguments]
    return ["mlp=MLP(", *lines, f'    activation=layer.activation("{found.activation}"),', "),"]


def _mlp_norm(found: Inspection) -> str:
    norm = found.mlp_norm
    if norm is None:
        return "None" if found.parallel else 'TODO("which norm stands at the MLP")'
    return _norm(norm, "which norm stands at the MLP")


def _norm(norm: NormFound | None, what: str) -> str:
    if norm is None:
        return f'TODO("{what}")'
    if norm.problem:
        return f'TODO("{norm.path}: {norm.problem}")'
    if norm.plain:
        return f'layer.norm("{norm.path}")'
    return f'{_NORM_FUNCTION}(layer, "{norm.path}")'


def _norm_function(found: Inspection) -> list[str]:
    """A function that reads the architecture's own kind of norm, where it has one."""
    own = {
        (norm.cls, _norm_options(norm))
        for norm in (found.attention_norm, found.mlp_norm, found.query_norm, found.key_norm)
        if norm is not None and not norm.plain and not norm.problem
    }
    if not own:
        return []
    (cls, options), *others = sorted(own)
    if others:
        options = 'TODO("norms of more than one kind")'
    return [
        "",
        "",
        f"def {_NORM_FUNCTION}(layer: Any, path: str) -> Norm:",
        f'    return layer.own_norm(path, f"{{_MODELING}}:{cls.partition(":")[2]}", {options})',
    ]


def _linear_function(found: Inspection) -> list[str]:
    """A function that reads the architecture's own kind of linear, where it has one."""
    if not found.own_linears:
        return []
    cls, *others = sorted(set(found.own_linears.values()))
    name = 'TODO("linears of more than one class")' if others else f'f"{{_MODELING}}:{cls.partition(":")[2]}"'
    return [
        "",
        "",
        f"def {_LINEAR_FUNCTION}(layer: Any, path: str) -> Linear:",
        f"    return layer.own_linear(path, {name})",
    ]


def _norm_options(norm: NormFound) -> str:
    arguments = [f"kind=NormKind.{norm.kind.name}", f"eps={norm.eps!r}".replace("'", '"')]
    arguments += [f"gain_offset={norm.gain_offset}"] if norm.gain_offset else []
    arguments += ["rounds_last=True"] if norm.rounds_last else []
    return ", ".join(arguments)


_NORM_FUNCTION = "_norm"
_LINEAR_FUNCTION = "_linear"


def _linear(found: Inspection, path: str) -> str:
    if not path:
        return 'TODO("which linear this is")'
    if path not in found.own_linears:
        return f'layer.linear("{path}")'
    return f'{_LINEAR_FUNCTION}(layer, "{path}")'
