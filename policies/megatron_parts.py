"""Parts that both of Megatron's layers are made of, read for a ``Structure`` named ``layer``."""

from __future__ import annotations

from typing import Any

from .anatomy import Activation, ActivationKind, Linear


def no_kernel_without_mask(layer: Any, softmax: Any) -> None:
    """Refuse a softmax that computes one function for some shapes and another for the rest."""
    fuses = getattr(softmax, "scaled_masked_softmax_fusion", False) and getattr(softmax, "input_in_float16", False)
    if fuses and softmax.attn_mask_type.name == "causal":
        raise layer.refuse("masked_softmax_fusion in half precision: for some shapes its kernel passes over the mask")


def activation(layer: Any, path: str) -> Activation:
    """The activation at ``path``: one of torch's functions by its kernel, anything else as the layer's own."""
    from torch.nn import functional as F  # noqa: N812

    function = layer.get(path)
    kernels = ((F.gelu, ActivationKind.GELU), (F.silu, ActivationKind.SILU), (F.relu, ActivationKind.RELU))
    for known, kind in kernels:
        if function is known:
            return Activation(kind=kind, function=function)
    read: Activation = layer.activation(path)
    return read


def parallel_linear(layer: Any, path: str, *class_names: str, adds: bool = False) -> Linear:
    """The parallel linear at ``path``, whole on this process. Raises ``UnsupportedLayer``.

    It hands back its bias instead of adding it where ``skip_bias_add`` is set. Most callers then add it themselves;
    ``adds`` says that this one would let it drop.
    """
    found = layer.module(path, *class_names)
    if found.weight is None or getattr(found, "is_expert", False):
        raise layer.refuse(f"{path} holds no weight of its own, or an expert's")
    size, part = ("output_size", "output_size_per_partition")
    if not hasattr(found, part):
        size, part = ("input_size", "input_size_per_partition")
    if getattr(found, part) != getattr(found, size):
        raise layer.refuse(f"tensor parallelism: {path} holds {getattr(found, part)} of {getattr(found, size)}")
    if adds and found.skip_bias_add and found.bias is not None:
        raise layer.refuse(f"{path} has a bias that is never added (skip_bias_add)")
    return Linear(name=path, weight=found.weight, bias=found.bias)
