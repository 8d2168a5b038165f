"""The policy contract: what a policy says of a layer agrees with the layer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from policies.anatomy import NormPosition, QKVLayout, SplitQKV

from ..trial import Disagreement, Trial, Vacuous, fused_path, original_side
from .base import Property, same_form

METHODS = {"attention": 7, "mlp": 5, "layerNorm": 4, "get_hidden_heads": 2}
"""Result counts of the methods with a fixed number of results."""


def _contract(trial: Trial) -> None:
    original, handle = trial.original, trial.replaced
    if not handle.replaced:
        raise Vacuous("no layer was replaced")
    for one in handle.replaced:
        layer, replacement = original.get_submodule(one.path), handle.model.get_submodule(one.path)
        _same_surface(one.path or "model", layer, replacement)
        policy = getattr(replacement, "_fused_policy", None)
        if policy is not None and hasattr(policy, "attention"):
            _five_methods(one.path, policy(layer), layer)
    if not trial.case.layered:
        _same_results(trial)


def _same_surface(path: str, layer: nn.Module, replacement: nn.Module) -> None:
    """Same signature, attributes, parameter names: what a caller or a parent may read."""
    if type(replacement) is type(layer):
        raise Disagreement(f"{path}: was to be replaced, and is a {type(layer).__name__} as before")
    for name in _functions(layer):
        if _arguments(layer, name) != _arguments(replacement, name):
            raise Disagreement(f"{path}: the replacement's {name} has another signature than the original's")
    missing = [name for name in vars(layer) if not name.startswith("_") and not hasattr(replacement, name)]
    if missing:
        raise Disagreement(f"{path}: the replacement lacks attributes of the original: {', '.join(missing)}")
    if list(dict(layer.named_parameters())) != list(dict(replacement.named_parameters())):
        raise Disagreement(f"{path}: the replacement's parameter names differ from the original's")


def _functions(layer: nn.Module) -> set[str]:
    """The layer's forward, and what else its own class lets others call: a VAE's ``decode``."""
    return {"forward", *(name for name, one in vars(type(layer)).items() if inspect.isfunction(one) and not name.startswith("_"))}


def _arguments(layer: nn.Module, name: str) -> list[tuple[str, object, object]]:
    """What a caller has to know of a layer's function; annotations it need not."""
    return [(one.name, one.kind, one.default) for one in inspect.signature(getattr(layer, name)).parameters.values()]


def _same_results(trial: Trial) -> None:
    """Raise unless a whole model returns what its caller unpacks, reads by name and views in another shape."""
    case, model = trial.case, trial.replaced.model
    with original_side():
        expected = case.call(trial.original, trial.inputs)
    with fused_path(model):
        actual = case.call(model, trial.fresh_inputs())
    same_form(expected, actual, "the model")
    if trial.example.values.get("tiling"):
        return  # a tile may be of one pixel, whose strides say nothing
    mine, its = case.outputs(expected), case.outputs(actual)
    scattered = [name for name, output in mine.items() if output.is_contiguous() and not its[name].is_contiguous()]
    if scattered:
        raise Disagreement(f"the model: {', '.join(scattered)} cannot be viewed in another shape, and the original's can")


def _five_methods(path: str, policy: Any, layer: nn.Module) -> None:
    for method, count in METHODS.items():
        result = getattr(policy, method)()
        if not isinstance(result, tuple) or len(result) != count:
            raise Disagreement(f"{path}: {method}() has to return {count} values")
    _shapes(path, policy)
    _names(path, policy, layer)
    _flags(path, policy)
    _norms(path, policy)
    if type(policy)(layer, inference=False).inference is not False:
        raise Disagreement(f"{path}: inference=False does not reach the policy")


def _flags(path: str, policy: Any) -> None:
    """Each flag says what the description says."""
    anatomy, names = policy.anatomy, policy.get_param_names()
    qkv = anatomy.attention.qkv
    said = {
        "linear_layer": (policy.linear_layer, not anatomy.attention.out.transposed),
        "scale_attention": (policy.scale_attention, anatomy.attention.scale != 1.0),
        "is_megatron_v2": (policy.is_megatron_v2, getattr(qkv, "layout", None) is QKVLayout.INTERLEAVED),
        "pre_attn_norm": (policy.pre_attn_norm, anatomy.norm_position is NormPosition.PRE),
        "split_qkv": (policy.split_qkv, isinstance(qkv, SplitQKV)),
        "split_qkv of get_param_names()": (names[-1], policy.split_qkv),
        "use_load_prefix": (policy.use_load_prefix, type(policy).load_prefix),
        "use_load_prefix of get_param_names()": (names[-2], policy.use_load_prefix),
    }
    wrong = [name for name, (mine, its) in said.items() if mine != its]
    if wrong:
        raise Disagreement(f"{path}: flags that do not fit the layer: {', '.join(wrong)}")


def _norms(path: str, policy: Any) -> None:
    """``layerNorm()`` returns the norm behind the attention first: the MLP's own, or in post-norm the attention's."""
    anatomy = policy.anatomy
    near, far = anatomy.mlp_norm, anatomy.attention_norm
    if anatomy.norm_position is NormPosition.POST:
        near, far = far, near
    wanted = [part for norm in (near, far) for part in (getattr(norm, "weight", None), getattr(norm, "bias", None))]
    if any(mine is not its for mine, its in zip(policy.layerNorm(), wanted, strict=True)):
        raise Disagreement(f"{path}: layerNorm() does not return the norm at the attention's output, then the other")


def _shapes(path: str, policy: Any) -> None:
    hidden, heads = policy.get_hidden_heads()
    linear, qkv, qkv_bias, dense, dense_bias, _, _ = policy.attention()
    inputs = qkv.shape[1] if linear else qkv.shape[0]
    outputs = qkv.shape[0] if linear else qkv.shape[1]
    if inputs != hidden:
        raise Disagreement(f"{path}: attention() reads {inputs} features, get_hidden_heads() says {hidden}")
    if outputs % heads and policy.anatomy.attention.heads == policy.anatomy.attention.kv_heads:
        raise Disagreement(f"{path}: {outputs} QKV rows cannot belong to {heads} heads")
    for name, bias, size in (("QKV", qkv_bias, outputs), ("dense", dense_bias, hidden)):
        if bias is not None and tuple(bias.shape) != (size,):
            raise Disagreement(f"{path}: {name} bias has shape {tuple(bias.shape)}, not ({size},)")
    linear, up, up_bias, down, _ = policy.mlp()
    inner = up.shape[0] if linear else up.shape[1]
    if up_bias is not None and tuple(up_bias.shape) != (inner,):
        raise Disagreement(f"{path}: intermediate bias has shape {tuple(up_bias.shape)}, not ({inner},)")
    if hidden not in dense.shape or hidden not in down.shape:
        raise Disagreement(f"{path}: an output projection does not end in the hidden size {hidden}")


def _names(path: str, policy: Any, layer: nn.Module) -> None:
    """Every name leads to the parameter it says, and every parameter is named once."""
    result = policy.get_param_names()
    names = [one for one in result if isinstance(one, str)]
    own = dict(layer.named_parameters(remove_duplicate=False))
    if sorted(names) != sorted(own):
        wrong = sorted(set(names) ^ set(own)) or "duplicates"
        raise Disagreement(f"{path}: get_param_names() and the layer's parameters differ in {wrong}")
    if [type(one) for one in result[-2:]] != [bool, bool]:
        raise Disagreement(f"{path}: get_param_names() has to end in use_load_prefix and split_qkv")
    said = [*policy.attention(), *policy.mlp(), *policy.layerNorm()]
    total = sum(_checksum(one) for one in said if isinstance(one, Tensor))
    held = sum(_checksum(own[name]) for name in _in_methods(policy))
    if not torch.isclose(torch.as_tensor(total), torch.as_tensor(held), rtol=1e-9):
        raise Disagreement(f"{path}: the tensors of the five methods are not the layer's parameters")


def _in_methods(policy: Any) -> list[str]:
    """Names of parameters that the five methods speak of: all but cross-attention's, its norm's, and head norms'."""
    anatomy = policy.anatomy
    parts = [*anatomy.attention.linears, *anatomy.mlp.linears, anatomy.attention_norm, anatomy.mlp_norm]
    return [name for part in parts if part is not None for name in part.parameters]


def _checksum(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


CONTRACT = Property(
    name="contract",
    statement="The policy's five methods describe exactly the layer's own parameters, and the replacement keeps the "
    "original's signatures, attributes and names; a whole model, the form of its results.",
    check=_contract,
    exact=False,
    share=0.05,
    least=6,
)
