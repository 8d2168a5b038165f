"""DeepSpeed's policies (``deepspeed.module_inject.replace_policy``): what they say of a layer, as an anatomy of ours.

A policy is used as DeepSpeed uses it: made once for None, which is how it finds its layer class; told the model's
configuration through a class attribute, as its inference engine does; then made for a layer and asked. What it says is
completed by what its container derives from the model's configuration (where the container can be made at all). Whatever
neither can say comes from a policy of our own: rotary positions, ALiBi, causality, the key/value cache, the call.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..anatomy import Activation, ActivationKind, NormKind
from ..base import ActivationFuncType, AnatomyPolicy
from .facts import FACTS, Contradiction, Parts, put_together, take_apart

if TYPE_CHECKING:
    from torch import nn

    from ..anatomy import LayerAnatomy

WIDEST_GELU_GAP = 1e-3
"""Two functions that agree to this on [-6, 6] are both called GELU: the flag does not tell forms of it apart."""

NEXT_TO_NOTHING = 1e-6
"""The tanh form with a rounded constant (BLOOM's) is the tanh form."""

_METHODS: dict[str, tuple[str, ...]] = {
    "attention": ("attention weights", "attention biases"),
    "mlp": ("MLP weights", "MLP biases"),
    "layernorm": ("norms",),
    "get_hidden_heads": ("heads", "grouped heads", "eps", "inner size"),
}
"""Methods of a policy, and the facts that are theirs to tell."""


class Crash(Exception):
    """A foreign policy raised. ``doing`` is the method, or "construction"."""

    def __init__(self, doing: str, error: BaseException) -> None:
        super().__init__(f"{doing} raises {type(error).__name__}: {' '.join(str(error).split())}")
        self.doing = doing


class Refusal(Exception):
    """A foreign policy refused the layer, by raising an error that says so."""


Dress = Callable[["nn.Module"], Any]
"""Gives a layer the names that a policy expects, where its own layer class cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a policy said of one layer. ``crashed`` holds the error of each method that raised; ``container`` is what
    DeepSpeed makes of the policy, None or an error where it makes nothing."""

    policy: Any
    container: Any
    parts: Parts
    crashed: dict[str, BaseException]


def ask(policy_class: Any, layer: nn.Module, own: LayerAnatomy, dress: Dress | None = None) -> Said:
    """Make ``policy_class`` for ``layer`` and ask it everything. Raises ``Crash`` or ``Refusal`` from the construction."""
    config = getattr(own.attention.module, "config", None)
    client = layer if dress is None else dress(layer)
    with _engine_told(config):
        policy = constructed(policy_class, client)
    parts: Parts = {"crossing": False}
    crashed: dict[str, BaseException] = {}
    for method, reader in _READERS.items():
        try:
            parts |= reader(getattr(policy, method)())
        except Exception as error:
            crashed[method] = error
    parts |= _flags(policy, own)
    container = container_of(policy, client, config, own)
    parts |= _from_container(container)
    return Said(parts=parts, crashed=crashed, policy=policy, container=container)


def constructed(policy_class: Any, client: Any) -> Any:
    """The policy for ``client``, made the way DeepSpeed's injection makes it."""
    try:
        return policy_class(client, inference=True)
    except (ValueError, NotImplementedError) as error:
        if _raised_by_deepspeed(error):
            raise Refusal(str(error)) from error
        raise Crash("construction", error) from error
    except Exception as error:
        raise Crash("construction", error) from error


def reading(
    policy_class: Any,
    own_policy: type[AnatomyPolicy],
    ours: frozenset[str],
    dress: Dress | None = None,
    refusals: set[str] | None = None,
) -> type[AnatomyPolicy]:
    """A policy of this project that reads layers as ``policy_class`` does, but for the facts in ``ours``.

    A layer that the policy refuses is read as ours: refusing is honest. What it said is added to ``refusals``.
    """

    class Reading(AnatomyPolicy):
        layer_classes = own_policy.layer_classes
        call = own_policy.call

        def __init__(self, client_module: nn.Module, inference: bool = True) -> None:
            from ..structure import Structure

            # Its tensors are copies made by the foreign policy: which parameters they came from is what is judged.
            self.client_module = client_module
            self.anatomy = self.read(Structure(client_module))

        @classmethod
        def read(cls, layer: Any) -> LayerAnatomy:
            own = own_policy.read(layer)
            if "construction" in ours:
                return own
            try:
                said = ask(policy_class, layer.layer, own, dress)
            except Refusal as refusal:
                if refusals is not None:
                    refusals.add(str(refusal))
                return own
            return mixed(said, own, ours)

    Reading.__name__ = Reading.__qualname__ = policy_class.__name__
    return Reading


def mixed(said: Said, own: LayerAnatomy, ours: frozenset[str]) -> LayerAnatomy:
    """The anatomy by what a policy ``said``, with the facts in ``ours`` from ``own``.

    Raises ``Crash`` or ``Contradiction``.
    """
    for method, error in said.crashed.items():
        if not set(_METHODS[method]) <= ours:
            raise Crash(f"{method}()", error) from error
    parts = take_apart(own)
    for fact, names in FACTS.items():
        if fact not in ours:
            parts |= {name: said.parts[name] for name in names if name in said.parts}
    return put_together(_with_gelu(parts), own)


def facts_of(error: BaseException) -> tuple[str, ...]:
    """The facts that ``error`` is about, where it says so itself."""
    if isinstance(error, Contradiction):
        return (error.fact,)
    if isinstance(error, Crash):
        return _METHODS.get(error.doing.removesuffix("()"), ("construction",))
    return ()


def container_class(policy_class: Any) -> Any:
    """The container that DeepSpeed would build from the policy: the class beside it whose name says so. None: there is
    none."""
    beside = vars(sys.modules[policy_class.__module__])
    return next((one for name, one in beside.items() if name.startswith("DS_") and name.endswith("Container")), None)


def container_of(policy: Any, client: Any, config: Any, own: LayerAnatomy) -> Any:
    """The container that DeepSpeed makes of ``policy``: None where it has none, the error where it fails."""
    import torch
    from deepspeed.inference.config import DeepSpeedInferenceConfig
    from deepspeed.module_inject.utils import policy_to_ds_container

    injected = DeepSpeedInferenceConfig(dtype=torch.float32, replace_with_kernel_inject=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return policy_to_ds_container(
                policy=policy, config=injected, model_config=config, layer_id=own.attention.cache_index or 0, child=client
            )
    except Exception as error:
        return error


def _attention(said: Any) -> Parts:
    qkv_weight, qkv_bias, out_weight, out_bias = said
    return {"qkv_weight": qkv_weight, "qkv_bias": qkv_bias, "out_weight": out_weight, "out_bias": out_bias}


def _mlp(said: Any) -> Parts:
    up_weight, up_bias, down_weight, down_bias = said
    return {"up_weight": up_weight, "up_bias": up_bias, "down_weight": down_weight, "down_bias": down_bias}


def _layernorm(said: Any) -> Parts:
    near_weight, near_bias, far_weight, far_bias = said
    return {
        "near_weight": near_weight,
        "near_bias": near_bias,
        "far_weight": far_weight,
        "far_bias": far_bias,
        "second_norm": near_weight is not None,
    }


def _hidden_heads(said: Any) -> Parts:
    hidden, heads, eps, inner = said
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": None,
        "head_size": hidden // heads,
        "near_eps": eps,
        "far_eps": eps,
        "inner": None if inner == -1 else inner,
    }


_READERS: dict[str, Callable[[Any], Parts]] = {
    "attention": _attention,
    "mlp": _mlp,
    "layernorm": _layernorm,
    "get_hidden_heads": _hidden_heads,
}


def _flags(policy: Any, own: LayerAnatomy) -> Parts:
    """The flags in our words. ``split_qkv`` False says that the rows of query, key and value stand together by head."""
    code = int(policy.mlp_act_func_type)
    return {
        "transposed": not policy.linear_layer,
        "interleaved": bool(policy.is_megatron_v2) or not policy.split_qkv,
        "scale": None if policy.scale_attention else 1.0,
        "pre_norm": bool(policy.pre_attn_norm),
        "norm_kind": {1: NormKind.LAYER, 3: NormKind.RMS}[int(policy.norm_type)],
        "gain_offset": 0.0,
        "activation": _activation(code, own.mlp.activation),
        "gated": code in (ActivationFuncType.GATED_GELU, ActivationFuncType.GATED_SILU),
        "gelu_is_tanh": code in (ActivationFuncType.GELU, ActivationFuncType.GATED_GELU),
    }


def _activation(code: int, own: Activation) -> Activation:
    """The activation that a code stands for: the layer's own where that is a form of it."""
    from ..fused.activations import KERNELS

    forms: dict[int, ActivationKind] = {
        ActivationFuncType.GELU: ActivationKind.GELU,
        ActivationFuncType.ReLU: ActivationKind.RELU,
        ActivationFuncType.GATED_GELU: ActivationKind.GELU,
        ActivationFuncType.GATED_SILU: ActivationKind.SILU,
    }
    kind = forms[code]
    if _gap(own.function, KERNELS[kind]) < WIDEST_GELU_GAP:
        return own
    return Activation(kind=kind, function=KERNELS[kind])


def _with_gelu(parts: Parts) -> Parts:
    """DeepSpeed's kernels compute the tanh form wherever a policy says GELU (``ops/transformer/inference/op_binding``)."""
    from ..fused.activations import KERNELS

    function = parts["activation"].function
    is_gelu = _gap(function, KERNELS[ActivationKind.GELU]) < WIDEST_GELU_GAP
    is_tanh = _gap(function, KERNELS[ActivationKind.GELU_TANH]) <= NEXT_TO_NOTHING
    if parts["gelu_is_tanh"] and is_gelu and not is_tanh:
        parts["activation"] = replace(parts["activation"], kind=ActivationKind.GELU_TANH)
    return parts


def _gap(one: Any, other: Any) -> float:
    import torch

    x = torch.linspace(-6.0, 6.0, 240, dtype=torch.get_default_dtype())
    with torch.no_grad():
        first, second = one(x), other(x)
    return float((first - second).abs().max()) if first.shape == second.shape else float("inf")


def _from_container(container: Any) -> Parts:
    """What the container adds from the model's configuration."""
    if container is None or isinstance(container, Exception):
        return {}
    window = container.window_size if container.local_attention else None
    return {"parallel": not container.mlp_after_attn, "window": window, "container_pre_norm": container.pre_layer_norm}


@contextlib.contextmanager
def _engine_told(config: Any) -> Iterator[None]:
    """DeepSpeed's engine leaves the model's configuration in a class attribute, for policies that look there."""
    from deepspeed.module_inject.policy import TransformerPolicy

    before = TransformerPolicy.hf_model_config
    TransformerPolicy.hf_model_config = config
    try:
        yield
    finally:
        TransformerPolicy.hf_model_config = before


def _raised_by_deepspeed(error: BaseException) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "deepspeed" in last.filename and (last.line or "").startswith("raise")
