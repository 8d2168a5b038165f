"""What every replacement policy promises.

The names and the order of results are those of DeepSpeed's ``module_inject/replace_policy.py``, so that people and code
that know it are at home. What differs is where facts come from: a policy's real product is a ``LayerAnatomy``, and the
five methods are views of it, so they cannot disagree with what is built.

This module and the policy pages import neither torch nor a model library until a layer is at hand: naming the policies
must be instant, and a missing library hurts only its own policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from enum import IntEnum
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .anatomy import ActivationKind, FusedQKV, NormPosition, QKVLayout, SplitQKV
from .swap import Swap, UnsupportedLayer, qualified_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .anatomy import LayerAnatomy, Linear, Norm
    from .calls import CallConvention


class ActivationFuncType(IntEnum):
    """Activation codes with DeepSpeed's values."""

    UNKNOWN = 0
    GELU = 1
    ReLU = 2
    GATED_GELU = 3
    GATED_SILU = 4


class AttentionTensors(NamedTuple):
    """``qkv_weight`` is ((H + 2K) * E, D), or (D, ...) where ``linear_layer`` is False; biases are 1-D or None."""

    linear_layer: bool
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    dense_weight: Tensor
    dense_bias: Tensor | None
    scale_attention: bool
    is_megatron_v2: bool


class MLPTensors(NamedTuple):
    """``intermediate_weight`` is (F, D), or (2F, D) with gate rows first in a gated MLP; ``output_weight`` is (D, F).
    Both are transposed where ``linear_layer`` is False."""

    linear_layer: bool
    intermediate_weight: Tensor
    intermediate_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None


class NormTensors(NamedTuple):
    """Norm at the attention's output, then the other one: the layer's input norm (pre-norm) or its last (post-norm).
    Each (D,), or None where the layer has none."""

    attention_weight: Tensor | None
    attention_bias: Tensor | None
    input_weight: Tensor | None
    input_bias: Tensor | None


class HiddenHeads(NamedTuple):
    hidden_size: int
    heads: int


class ParamNames(tuple[Any, ...]):
    """Checkpoint names of a layer (attention, MLP, norms), then ``use_load_prefix`` and ``split_qkv``."""

    @property
    def names(self) -> tuple[str, ...]:
        return self[:-2]

    @property
    def use_load_prefix(self) -> bool:
        return self[-2]

    @property
    def split_qkv(self) -> bool:
        return self[-1]


class _OriginalClass:
    """``Policy._orig_layer_class``: the first class a policy replaces, imported when asked for; None if not installed."""

    def __get__(self, instance: object, owner: type[DSPolicy]) -> type[nn.Module] | None:
        for path in owner.layer_classes:
            with suppress(ImportError, AttributeError, ValueError):
                found: type[nn.Module] = resolve_name(path)
                return found
        return None


class DSPolicy(ABC):
    """One kind of layer: how it is recognised, and how a faster one takes its place."""

    layer_classes: ClassVar[tuple[str, ...]] = ()
    """``module:Class`` of each class replaced. Matching is exact: a subclass may compute something else. ``*:Class`` is
    a class of that name from any module, for code that is copied from project to project instead of being imported."""

    _orig_layer_class = _OriginalClass()

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """True where ``module`` is of one of this policy's classes, exactly."""
        return cls.knows(type(module))

    @classmethod
    def knows(cls, layer_class: type) -> bool:
        """True where ``layer_class`` is one of this policy's."""
        own = layer_class.__qualname__.rpartition(".")[2]  # of a replaced layer's class another than its name
        names = (qualified_name(layer_class), f"*:{own}")
        return any(name in cls.layer_classes for name in names)

    @classmethod
    @abstractmethod
    def plan(cls, module: nn.Module) -> Swap:
        """Read ``module`` and say how it will be swapped, changing nothing. Raises ``UnsupportedLayer``."""


class GenericPolicy(DSPolicy):
    """A policy for a whole model, with DeepSpeed's names for what such a policy does."""

    @classmethod
    @abstractmethod
    def plan(cls, module: nn.Module, *, enable_cuda_graph: bool = True) -> Swap:
        """``enable_cuda_graph`` captures calls on CUDA."""

    @classmethod
    def match(cls, module: nn.Module) -> bool:
        """DeepSpeed's name for ``matches``."""
        return cls.matches(module)

    @classmethod
    def apply(cls, module: nn.Module, enable_cuda_graph: bool = True) -> nn.Module:
        """Replace ``module`` and return it: the same object. Raises ``UnsupportedLayer``. ``replace_module`` does the same and
        can take it back."""
        if not cls.matches(module):
            names = " or ".join(path.rpartition(":")[2] for path in cls.layer_classes)
            raise UnsupportedLayer(f"not of class {names}", layer=type(module).__name__)
        cls.plan(module, enable_cuda_graph=enable_cuda_graph).install()
        return module


class TransformerPolicy(DSPolicy):
    """A policy for one Transformer layer. Flags carry DeepSpeed's names and defaults."""

    def __init__(
        self,
        inference: bool = True,
        linear_layer: bool = True,
        scale_attention: bool = True,
        megatron_v2: bool = False,
        mlp_act_func_type: ActivationFuncType = ActivationFuncType.GELU,
        pre_attn_norm: bool = True,
        use_load_prefix: bool = False,
        split_qkv: bool = True,
    ) -> None:
        self.inference = inference
        self.linear_layer = linear_layer
        self.scale_attention = scale_attention
        self.is_megatron_v2 = megatron_v2
        self.mlp_act_func_type = mlp_act_func_type
        self.pre_attn_norm = pre_attn_norm
        self.use_load_prefix = use_load_prefix
        self.split_qkv = split_qkv

    @abstractmethod
    def attention(self) -> AttentionTensors: ...

    @abstractmethod
    def mlp(self) -> MLPTensors: ...

    @abstractmethod
    def layerNorm(self) -> NormTensors: ...

    @abstractmethod
    def get_hidden_heads(self) -> HiddenHeads: ...

    @abstractmethod
    def get_param_names(self) -> ParamNames: ...


class AnatomyPolicy(TransformerPolicy):
    """A policy that reads its layer once, into an anatomy; flags and the five methods follow from it.

    A page implements ``read`` and sets ``layer_classes`` and ``call``.
    """

    call: ClassVar[CallConvention]
    load_prefix: ClassVar[bool] = False

    def __init__(self, client_module: nn.Module, inference: bool = True) -> None:
        from .structure import Structure

        self.client_module = client_module
        structure = Structure(client_module)
        structure.nothing_patched()
        anatomy = self.read(structure)
        structure.all_modules_read()
        structure.all_parameters_read(anatomy)
        structure.heads_agree(anatomy)
        self.anatomy = anatomy
        qkv = anatomy.attention.qkv
        super().__init__(
            inference=inference,
            linear_layer=not anatomy.attention.out.transposed,
            scale_attention=anatomy.attention.scale != 1.0,
            megatron_v2=isinstance(qkv, FusedQKV) and qkv.layout is QKVLayout.INTERLEAVED,
            mlp_act_func_type=_activation_code(anatomy),
            pre_attn_norm=anatomy.norm_position is NormPosition.PRE,
            use_load_prefix=self.load_prefix,
            split_qkv=isinstance(qkv, SplitQKV),
        )

    @classmethod
    @abstractmethod
    def read(cls, layer: Any) -> LayerAnatomy:
        """Describe the layer behind ``layer`` (a ``Structure``). Raises ``UnsupportedLayer``; changes nothing."""

    @classmethod
    def plan(cls, module: nn.Module) -> Swap:
        from .fused.layer import LayerSwap

        return LayerSwap(module, cls)

    def attention(self) -> AttentionTensors:
        block = self.anatomy.attention
        weight, bias = stack(block.qkv.linears)
        return AttentionTensors(
            self.linear_layer,
            weight,
            bias,
            block.out.weight,
            block.out.bias,
            self.scale_attention,
            self.is_megatron_v2,
        )

    def mlp(self) -> MLPTensors:
        block = self.anatomy.mlp
        weight, bias = stack(block.linears[:-1])
        return MLPTensors(self.linear_layer, weight, bias, block.down.weight, block.down.bias)

    def layerNorm(self) -> NormTensors:
        near, far = self.anatomy.mlp_norm, self.anatomy.attention_norm
        if self.anatomy.norm_position is NormPosition.POST:
            near, far = far, near
        return NormTensors(*_norm_tensors(near), *_norm_tensors(far))

    def get_hidden_heads(self) -> HiddenHeads:
        return HiddenHeads(self.anatomy.hidden_size, self.anatomy.attention.heads)

    def get_param_names(self) -> ParamNames:
        return ParamNames((*self.anatomy.parameters, self.use_load_prefix, self.split_qkv))


def stack(linears: tuple[Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """Stack projections along their outputs; a missing bias beside a present one counts as zeros."""
    import torch

    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([one.weight for one in linears], dim=1 if linears[0].transposed else 0)
    if all(one.bias is None for one in linears):
        return weight, None
    outputs = [one.weight_out_in.shape[0] for one in linears]
    biases = [weight.new_zeros(n) if one.bias is None else one.bias for one, n in zip(linears, outputs, strict=True)]
    return weight, torch.cat(biases)


def _norm_tensors(norm: Norm | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if norm is None else (norm.weight, norm.bias)


def _activation_code(anatomy: LayerAnatomy) -> ActivationFuncType:
    mlp = anatomy.mlp
    gated = mlp.gate is not None or (mlp.gate_up is not None)
    plain = {
        ActivationKind.GELU: ActivationFuncType.GELU,
        ActivationKind.GELU_TANH: ActivationFuncType.GELU,
        ActivationKind.GELU_TANH_SHORT: ActivationFuncType.GELU,
        ActivationKind.RELU: ActivationFuncType.ReLU,
    }
    with_gate = {
        ActivationKind.GELU: ActivationFuncType.GATED_GELU,
        ActivationKind.GELU_TANH: ActivationFuncType.GATED_GELU,
        ActivationKind.GELU_TANH_SHORT: ActivationFuncType.GATED_GELU,
        ActivationKind.SILU: ActivationFuncType.GATED_SILU,
    }
    return (with_gate if gated else plain).get(mlp.activation.kind, ActivationFuncType.UNKNOWN)
