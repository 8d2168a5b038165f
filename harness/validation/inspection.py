"""What a layer is made of and how it is wired, found by running it and comparing the tensors that pass through it.

Names only say where to look. Whether a norm stands before or after its block, whether attention and MLP are parallel,
which projection is the gate, is read off the values: the input of one part is the output of another, or a sum of two.
What cannot be found out is said, one sentence each, and left to the author.

Shapes: B batch, T tokens, D hidden size, H heads, K key/value heads, E head size.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from policies.calls import CACHE_NAMES
from policies.swap import qualified_name

from ..exact import exact_mode
from ..nested import cast
from ..properties.equality import main_output
from ..search import quiet
from .derivation import Derivation
from .derived import DerivedCase
from .models import NotDerivable, layers_of
from .norms import NormFound, is_norm, norm_found
from .parts import Passed, is_linear, is_plain, linear_paths, same, watched

_QUERY = re.compile(r"^(q|query|q_proj|q_lin|wq|to_q|query_proj)$")
_KEY = re.compile(r"^(k|key|k_proj|k_lin|wk|to_k|key_proj)$")
_VALUE = re.compile(r"^(v|value|v_proj|v_lin|wv|to_v|value_proj)$")
_FUSED = re.compile(r"^(query_key_value|qkv|qkv_proj|c_attn|wqkv|in_proj|w_pack|att_proj)$", re.IGNORECASE)


@dataclass(kw_only=True)
class Inspection:
    """What was found out of a layer. Paths are from the layer; None where nothing was found. ``open`` lists what the
    author has to settle."""

    layer: str
    model: str
    attention_path: str = ""
    attention_class: str = ""
    query: str = ""
    key: str = ""
    value: str = ""
    fused: str = ""
    out: str = ""
    gate: str = ""
    up: str = ""
    gate_up: str = ""
    down: str = ""
    deaf: bool = False
    """Whether a word on causality changes nothing."""
    own_linears: dict[str, str] = field(default_factory=dict)
    """Class of each linear that is of the architecture's own and computes what ``nn.Linear`` does."""
    activation: str = ""
    containers: dict[str, str] = field(default_factory=dict)
    """Class of each module besides the attention that holds others."""
    attention_norm: NormFound | None = None
    mlp_norm: NormFound | None = None
    query_norm: NormFound | None = None
    key_norm: NormFound | None = None
    post_norm: bool = False
    parallel: bool = False
    rotary: int = 0
    """How many elements of a head rotate."""
    rotary_size: str = ""
    alibi: bool = False
    returns_tuple: bool = False
    cache_index: str | None = None
    grouped: bool = False
    heads: str = ""
    kv_heads: str = ""
    head_size: str = ""
    scale: str = ""
    causal_flag: bool = False
    constants: dict[str, bool | float] = field(default_factory=dict)
    """What is set, whatever the configuration, on modules that are the architecture's own."""
    open: list[str] = field(default_factory=list)


class _Attends(TorchFunctionMode):
    """Notes whether anything that runs in ``layer`` weighs values by a softmax."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.seen = self.inside = False
        layer.register_forward_pre_hook(lambda *_: setattr(self, "inside", True))
        layer.register_forward_hook(lambda *_: setattr(self, "inside", False))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= self.inside and func in _ATTENTION
        return func(*args, **(kwargs or {}))


_ATTENTION = (F.scaled_dot_product_attention, F.softmax, torch.softmax, Tensor.softmax)


def inspect_layer(derivation: Derivation) -> Inspection:
    """Run one tiny layer of ``derivation`` and say what it is. Raises ``NotDerivable`` where it attends to nothing."""
    case = DerivedCase(derivation)
    example = case.apart(case.with_those_drawn(kv_heads=2, group=3, heads=3, inner=31, batch=2, tokens=4))
    with quiet(), exact_mode():
        model = case.build(example).double()
        layer = layers_of(model, derivation.layer)[0]
        if layer is model:
            raise NotDerivable(f"{type(layer).__name__} is a whole model; name the class of its layers")
        with _Attends(layer) as attention:
            parts, call, output = watched(model, layer, cast(case.inputs(example).kwargs, torch.float64))
    if not attention.seen:
        raise NotDerivable(
            f"nothing attends in a {type(layer).__name__}, and what is written from an anatomy does; "
            "write a policy with a layer of your own (docs/policies.md)"
        )
    found = Inspection(layer=derivation.layer, model=derivation.model)
    _call(found, layer, call, output)
    found.own_linears = {
        path: qualified_name(type(part.module)) for path, part in parts.items() if not is_plain(part) and is_linear(part)
    }
    _attention(found, layer, parts)
    _mlp(found, layer, parts)
    _wiring(found, parts, call["hidden_states"])
    _numbers(found, layer, parts, example["head_size"])
    found.containers = _containers(layer, (found.attention_path, found.activation))
    return found


def constants(layers: Iterable[nn.Module]) -> dict[str, bool | float]:
    """By path, the flags and numbers on modules of an architecture's own that are the same in each of ``layers``."""
    values: dict[str, set[bool | float]] = {}
    for layer in layers:
        for path, module in layer.named_modules():
            if not type(module).__module__.startswith(_SHARED_MODULES):
                for name, value in vars(module).items():
                    if type(value) in (bool, float) and name != "training" and not name.startswith("_"):
                        values.setdefault(f"{path}.{name}".strip("."), set()).add(value)
    return {path: seen.pop() for path, seen in values.items() if len(seen) == 1}


def _call(found: Inspection, layer: nn.Module, call: dict[str, Any], output: Any) -> None:
    parameters = inspect.signature(layer.forward).parameters
    if "hidden_states" not in parameters:
        found.open.append(f"the layer's first argument is called {next(iter(parameters))}, not hidden_states")
    found.returns_tuple = isinstance(output, tuple)
    if found.returns_tuple and len(output) != 2:
        found.open.append(f"the layer returns {len(output)} values: choose or add a Returns")
    positions = call.get("position_embeddings")
    found.rotary = 0 if positions is None else positions[0].shape[-1]
    found.alibi = call.get("alibi") is not None
    found.deaf = _is_deaf(layer, call)


def _is_deaf(layer: nn.Module, call: dict[str, Any]) -> bool:
    """Whether the layer takes a word on causality, which transformers' sdpa would heed, and hands it on to nobody."""
    alone = {name: value for name, value in call.items() if name not in CACHE_NAMES} | {"attention_mask": None}
    try:
        with quiet(), exact_mode():
            told = [layer(**alone, is_causal=causal) for causal in (True, False)]
    except (TypeError, ValueError):
        return False
    causal, free = map(main_output, told)
    return torch.equal(causal, free)


def _attention(found: Inspection, layer: nn.Module, parts: dict[str, Passed]) -> None:
    linears = linear_paths(parts)

    def named(pattern: re.Pattern[str]) -> str:
        return next((path for path in linears if pattern.match(path.rpartition(".")[2])), "")

    found.query, found.key, found.value, found.fused = (named(one) for one in (_QUERY, _KEY, _VALUE, _FUSED))
    if found.query and found.key and found.value:
        found.fused = ""
        last = max(linears.index(path) for path in (found.query, found.key, found.value))
    elif found.fused:
        found.query = found.key = found.value = ""
        last = linears.index(found.fused)
    else:
        odd_ones = {
            type(one).__name__ for path, one in layer.named_modules() if isinstance(one, nn.Linear) and path not in linears
        }
        odd = f" ({', '.join(sorted(odd_ones))} computes something else than nn.Linear)" if odd_ones else ""
        found.open.append(f"which of its linears are the QKV projections: {', '.join(linears) or 'none is plain'}{odd}")
        return
    found.attention_path = (found.query or found.fused).rpartition(".")[0]
    found.attention_class = qualified_name(type(layer.get_submodule(found.attention_path)))
    found.out = linears[last + 1] if last + 1 < len(linears) else ""
    if not found.out:
        found.open.append("which linear is the attention's output projection")


def _mlp(found: Inspection, layer: nn.Module, parts: dict[str, Passed]) -> None:
    known = {found.query, found.key, found.value, found.fused, found.out}
    rest = [path for path in linear_paths(parts) if path not in known]
    activation = next((path for path in parts if _is_activation(layer, path)), "")
    if len(rest) not in (2, 3) or not activation:
        linears = ", ".join(rest) or "no linears"
        found.open.append(f"how the MLP is made of {linears} and {activation or 'no activation'}")
        return
    found.activation, found.down = activation, rest[-1]
    into = parts[activation].given
    if len(rest) == 3:
        found.gate = next((path for path in rest[:2] if same(parts[path].returned, into)), "")
        found.up = next(path for path in rest[:2] if path != found.gate)
        if not found.gate:
            found.open.append(f"which of {rest[0]} and {rest[1]} goes through the activation")
    elif same(parts[rest[0]].returned, into):
        found.up = rest[0]
    elif same(parts[rest[0]].returned.chunk(2, dim=-1)[0], into):
        found.gate_up = rest[0]
    else:
        found.open.append(f"how {rest[0]} and the activation are joined")


def _containers(layer: nn.Module, known: tuple[str, ...]) -> dict[str, str]:
    holding = [(path, one) for path, one in layer.named_modules() if path and next(one.children(), None) is not None]
    return {path: qualified_name(type(one)) for path, one in holding if path not in known}


def _is_activation(layer: nn.Module, path: str) -> bool:
    module = layer.get_submodule(path)
    return "act" in path.rpartition(".")[2].lower() or type(module).__module__ in (
        "transformers.activations",
        "torch.nn.modules.activation",
    )


def _wiring(found: Inspection, parts: dict[str, Passed], x: Tensor) -> None:
    """Which norm stands where: (B, T, D) values are compared, never names."""
    first, inner = parts.get(found.query or found.fused), parts.get(found.gate or found.up or found.gate_up)
    if first is None or inner is None or not found.out:
        return
    attended = parts[found.out].returned
    norms = {path: part for path, part in parts.items() if is_norm(part.module)}
    head = {path: part for path, part in norms.items() if path.startswith(f"{found.attention_path}.")}
    whole = {path: part for path, part in norms.items() if path not in head}
    found.post_norm = same(first.given, x)
    before = next((path for path, part in whole.items() if same(part.returned, first.given)), "")
    after = next((path for path, part in whole.items() if same(part.given, x + attended)), "")
    ahead = next((path for path, part in whole.items() if same(part.returned, inner.given)), "")
    if found.post_norm:
        last = next((path for path in whole if path != after), "")
        _place(found, parts, after, last)
    else:
        found.parallel = bool(ahead) and not same(parts[ahead].given, x + attended)
        _place(found, parts, before, "" if ahead == before else ahead)
    unplaced = [path for path in whole if path not in _placed(found)]
    if unplaced:
        found.open.append(f"norms that stand where no anatomy has one: {', '.join(unplaced)}")
    _head_norms(found, head)


def _place(found: Inspection, parts: dict[str, Passed], attention: str, mlp: str) -> None:
    found.attention_norm = norm_found(attention, parts[attention]) if attention else None
    found.mlp_norm = norm_found(mlp, parts[mlp]) if mlp else None
    for norm in (found.attention_norm, found.mlp_norm):
        if norm is not None and norm.problem:
            found.open.append(f"{norm.path}: {norm.problem}")
    if found.attention_norm is None:
        found.open.append("which norm belongs to the attention block")
    if found.mlp_norm is None and not found.parallel:
        found.open.append("which norm belongs to the MLP")


def _placed(found: Inspection) -> set[str]:
    return {norm.path for norm in (found.attention_norm, found.mlp_norm) if norm is not None}


def _head_norms(found: Inspection, head: dict[str, Passed]) -> None:
    """Norms inside the attention, over each head of queries and keys."""
    for path, part in head.items():
        is_query = "q" in path.rpartition(".")[2].lower().split("_")[0]
        norm = norm_found(path, part)
        if norm.problem or part.given.dim() != 4:
            why = norm.problem or "it is not taken over each head alone"
            found.open.append(f"{path} inside the attention: {why}")
        elif is_query:
            found.query_norm = norm
        else:
            found.key_norm = norm


def _numbers(found: Inspection, layer: nn.Module, parts: dict[str, Passed], size: int) -> None:
    """Where the attention keeps its head counts, head size and scale."""
    if not found.attention_path:
        return
    own = layer.get_submodule(found.attention_path)
    found.cache_index = "layer_idx" if hasattr(own, "layer_idx") else None
    found.causal_flag = hasattr(own, "is_causal")
    found.grouped = hasattr(own, "num_key_value_groups")
    found.head_size = next((n for n in _HEAD_SIZES if getattr(own, n, None) == size), "")
    found.rotary_size = next((n for n in _ROTARY_SIZES if found.rotary and getattr(own, n, None) == found.rotary), "")
    found.scale = next((n for n in _SCALES if isinstance(getattr(own, n, None), float)), "")
    if not found.head_size:
        found.open.append("where the attention module keeps its head size")
    if not hasattr(own, "config"):
        found.open.append("the attention module has no config: read its implementation elsewhere")
    if found.query:
        heads = parts[found.query].returned.shape[-1] // size
        found.heads = next((n for n in _HEADS if getattr(own, n, None) == heads), "")
    elif found.fused:
        found.heads = next((n for n in _HEADS if isinstance(getattr(own, n, None), int)), "")
        found.kv_heads = next((n for n in _KV_HEADS if isinstance(getattr(own, n, None), int)), "")
        if found.kv_heads and not found.heads and hasattr(own, "num_key_value_groups"):
            found.heads = f"{found.kv_heads} * own.num_key_value_groups"
        if not found.heads:
            found.open.append("where the attention module keeps its number of heads")


_SHARED_MODULES = ("torch.", "transformers.activations")
_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "d_head", "attention_head_dim")
_ROTARY_SIZES = ("rotary_ndims", "rotary_dim")
_SCALES = ("scaling", "scale", "inv_norm_factor", "softmax_scale")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads")
