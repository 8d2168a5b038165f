"""Reading a layer: find parts by path, and refuse whatever is not exactly what it should be.

A replacement computes with tensors, so a module that does more than its type says (a quantised or adapted linear, a
parametrised weight, a subclassed norm) must never be taken for the plain thing. Every reader here checks the exact type
and names the path where it found something else.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .anatomy import Activation, ActivationKind, Causality, Linear, Norm, NormKind
from .swap import UnsupportedLayer, qualified_name

if TYPE_CHECKING:
    from .anatomy import LayerAnatomy

_KERNELS = {
    "transformers.activations:GELUActivation": ActivationKind.GELU,
    "transformers.activations:GELUTanh": ActivationKind.GELU_TANH,
    "transformers.activations:PytorchGELUTanh": ActivationKind.GELU_TANH,
    "transformers.activations:NewGELUActivation": ActivationKind.GELU_TANH,
    "transformers.activations:QuickGELUActivation": ActivationKind.QUICK_GELU,
    "transformers.activations:SiLUActivation": ActivationKind.SILU,
    "transformers.models.bloom.modeling_bloom:BloomGelu": ActivationKind.GELU_TANH_SHORT,
    "torch.nn.modules.activation:SiLU": ActivationKind.SILU,
    "torch.nn.modules.activation:ReLU": ActivationKind.RELU,
}
"""Activations with a kernel of their own, by exact class. The others stay the layer's own function, among them those
that look alike but use a rounded constant (``gelu_fast``)."""

RMS_NORMS = {"transformers.models.llama.modeling_llama:LlamaRMSNorm": "variance_epsilon"}
"""RMS norms by exact class, with the attribute that holds eps."""


_NEUTRAL = (nn.Dropout, nn.Identity)
"""Modules that need not be read: in eval mode they compute nothing."""


class Structure:
    """A layer being read. Paths are dotted attribute names from the layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.name = type(layer).__name__
        self._read: set[nn.Module] = {layer}

    def refuse(self, feature: str) -> UnsupportedLayer:
        return UnsupportedLayer(feature, layer=self.name)

    def get(self, path: str) -> Any:
        """The attribute at ``path``. Raises ``UnsupportedLayer`` where a part of the path is missing."""
        found: Any = self.layer
        for part in path.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                near = get_close_matches(part, dict(found.named_children())) if isinstance(found, nn.Module) else []
                hint = f" (it has {near[0]})" if near else ""
                raise self.refuse(f"has no {path}: not the structure this policy knows{hint}") from None
        if isinstance(found, nn.Module):
            self._read.add(found)
        return found

    def has(self, path: str) -> bool:
        """True where ``path`` leads to something that is not None."""
        found: Any = self.layer
        for part in path.split("."):
            found = getattr(found, part, None)
        return found is not None

    def module(self, path: str, *class_names: str) -> Any:
        """The module at ``path``, which must be exactly of one of these classes (``module:Class``)."""
        found = self.get(path)
        if qualified_name(type(found)) not in class_names:
            raise self.refuse(f"{path} is a {_told_from(class_names, found)}, not {' or '.join(map(_short, class_names))}")
        return found

    def linear(self, path: str) -> Linear:
        """The ``nn.Linear`` or Conv1D at ``path``."""
        found = self.get(path)
        if type(found) is nn.Linear:
            return Linear(name=path, weight=found.weight, bias=found.bias)
        if qualified_name(type(found)) == "transformers.pytorch_utils:Conv1D":
            return Linear(name=path, weight=found.weight, bias=found.bias, transposed=True)
        raise self.refuse(f"{path} is a {_told_from((':Linear', ':Conv1D'), found)}, not a plain Linear or Conv1D")

    def own_linear(self, path: str, class_name: str) -> Linear:
        """The linear at ``path``, of a subclass of ``nn.Linear`` of the architecture's own (``module:Class``), which computes
        what ``nn.Linear`` does. A class that is not the one looked at is refused."""
        found = self.module(path, class_name)
        names = list(dict(found.named_parameters()))
        if not isinstance(found, nn.Linear) or names not in (["weight"], ["weight", "bias"]):
            raise self.refuse(f"{path} has parameters {', '.join(names)}, not a linear's weight and bias")
        return Linear(name=path, weight=found.weight, bias=found.bias)

    def norm(self, path: str) -> Norm:
        """The ``nn.LayerNorm`` over the last dimension, or known RMS norm, at ``path``."""
        found = self.get(path)
        if type(found) is nn.LayerNorm and len(found.normalized_shape) == 1:
            return Norm(name=path, kind=NormKind.LAYER, weight=found.weight, bias=found.bias, eps=found.eps)
        if type(found) is nn.RMSNorm and len(found.normalized_shape) == 1 and found.eps is not None:
            return Norm(name=path, kind=NormKind.RMS, weight=found.weight, bias=None, eps=found.eps, rounds_last=True)
        eps = RMS_NORMS.get(qualified_name(type(found)))
        if eps is not None and list(dict(found.named_parameters())) == ["weight"]:
            return Norm(name=path, kind=NormKind.RMS, weight=found.weight, bias=None, eps=getattr(found, eps))
        raise self.refuse(f"{path} is a {_told_from((':LayerNorm', *RMS_NORMS), found)}, not a LayerNorm or a known RMS norm")

    def own_norm(
        self,
        path: str,
        class_name: str,
        *,
        kind: NormKind,
        eps: str | float,
        gain_offset: float = 0.0,
        rounds_last: bool = False,
    ) -> Norm:
        """The norm at ``path``, of a class of the architecture's own (``module:Class``), a norm of ``kind``.

        ``eps`` names the attribute that holds it, or is the number itself where the class has it in its code. See
        ``Norm`` for the rest.
        """
        found = self.module(path, class_name)
        names = list(dict(found.named_parameters()))
        if names not in ([], ["weight"], ["weight", "bias"]):
            raise self.refuse(f"{path} has parameters {', '.join(names)}, not a weight and a bias")
        return Norm(
            name=path,
            kind=kind,
            weight=getattr(found, "weight", None),
            bias=getattr(found, "bias", None),
            eps=getattr(found, eps) if isinstance(eps, str) else eps,
            gain_offset=gain_offset,
            rounds_last=rounds_last,
        )

    def activation(self, path: str) -> Activation:
        """The activation at ``path``: a module or any callable on tensors."""
        found = self.get(path)
        if not callable(found):
            raise self.refuse(f"{path} is not callable")
        if isinstance(found, nn.Module):
            self._read.update(found.modules())
        kind = _KERNELS.get(qualified_name(type(found)), ActivationKind.OWN)
        if (kind is ActivationKind.RELU and found.inplace) or (kind is not ActivationKind.OWN and _calls_another(found, kind)):
            kind = ActivationKind.OWN
        return Activation(kind=kind, function=found, name=path if isinstance(found, nn.Module) else None)

    def transformers_attention(self, path: str, *class_names: str) -> Any:
        """A transformers attention module whose configured implementation is eager or sdpa."""
        found = self.module(path, *class_names)
        implementation = found.config._attn_implementation
        if implementation not in ("eager", "sdpa"):
            raise self.refuse(f"attention implementation {implementation!r} (eager and sdpa are supported)")
        return found

    def causality(self, attention: Any) -> Causality:
        """Of transformers' ``attention``, which tells sdpa of its flag, and eager attention nothing."""
        by_sdpa = attention.config._attn_implementation == "sdpa"
        return Causality.IF_NO_MASK if by_sdpa and attention.is_causal else Causality.NEVER

    def nothing_patched(self) -> None:
        """Raise where the layer or a module in it has a forward, or another function, of its own instead of its class's."""
        for path, module in self.layer.named_modules():
            name = overridden(module)
            if name is not None:
                raise self.refuse(f"a {name} of its own on {path or 'the layer'}, not its class's")

    def constant(self, path: str, value: bool | float) -> None:
        """Raise where what is set at ``path``, if anything is, is not the ``value`` that the parts go by."""
        if self.has(path) and self.get(path) != value:
            raise self.refuse(f"{path}={self.get(path)!r}, which its parts contradict")

    def all_modules_read(self) -> None:
        """Match or refuse, in general: raise unless each module of the layer was read, or computes nothing."""
        for path, module in self.layer.named_modules():
            if module not in self._read and type(module) not in _NEUTRAL:
                raise self.refuse(f"{path} is a {type(module).__name__}, which this policy does not read")

    def all_parameters_read(self, anatomy: LayerAnatomy) -> None:
        """Match or refuse, in general: raise unless the anatomy accounts for each of the layer's parameters, and each is a plain
        one: a quantised or sharded tensor multiplies by a code of its own."""
        from .fused.packed import PackedParameter

        own = dict(self.layer.named_parameters(remove_duplicate=False))
        read = anatomy.parameters
        if own.keys() != read.keys() or any(own[name] is not read[name] for name in own):
            unread = sorted(own.keys() ^ read.keys()) or sorted(n for n in own if own[n] is not read[n])
            raise self.refuse(f"parameters that this policy does not account for: {', '.join(unread)}")
        for name, parameter in own.items():
            if type(parameter) not in (nn.Parameter, PackedParameter, torch.Tensor):
                raise self.refuse(f"{name} is a {type(parameter).__name__}, not a plain parameter")
        dtypes = {p.dtype for p in own.values()}
        if any(not dtype.is_floating_point for dtype in dtypes) or any(_is_narrow(dtype) for dtype in dtypes):
            raise self.refuse(f"parameters of dtype {', '.join(sorted(map(str, dtypes)))}")

    def heads_agree(self, anatomy: LayerAnatomy) -> None:
        """Raise unless scores have one scale, and projections as many features as the heads that were read make them give and
        take. An original may get by with one of the numbers and never look at the others."""
        for block in filter(None, (anatomy.attention, anatomy.cross_attention)):
            if not isinstance(block.scale, int | float):
                raise self.refuse(f"a scale that is a {type(block.scale).__name__}, and no number")
            for linear, asked in block.features:
                found = linear.features
                if len(found) != 2 or any(its not in (one, -1) for one, its in zip(found, asked, strict=True)):
                    heads = f"{block.heads} heads ({block.kv_heads} of keys) of {block.head_size}"
                    raise self.refuse(f"{linear.name} of {found} features, which {heads} contradict")


def _calls_another(activation: nn.Module, kind: ActivationKind) -> bool:
    """Whether what an activation of transformers calls, where it keeps such a function, is none of those of its class: torch's
    kernel, or a method that computes the same step by step."""
    act = vars(activation).get("act")
    if act is None:
        return False
    if isinstance(act, MethodType):
        return act.__self__ is not activation or act.__func__ is not getattr(type(activation), act.__name__, None)
    return _parts(act) != _parts(_KEPT.get(kind))


def _parts(function: Any) -> tuple[Any, ...]:
    return (function.func, function.args, function.keywords) if isinstance(function, partial) else (function, (), {})


_KEPT = {ActivationKind.GELU: F.gelu, ActivationKind.GELU_TANH: partial(F.gelu, approximate="tanh")}


def patched(module: nn.Module) -> bool:
    """Whether ``module`` has a forward of its own. transformers 5.0 leaves the class's own, bound, on modules whose
    outputs it has recorded; that one is no other."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def overridden(module: nn.Module) -> str | None:
    """The name of a function of its class that ``module`` has one of its own instead of, or None. What a replaced layer has
    besides its original's is left out, and what tells of it in words alone, as torchao puts on a linear."""
    for name, own in vars(module).items():
        function = None if name.startswith("_fused") or name == "extra_repr" else getattr(type(module), name, None)
        if isinstance(function, FunctionType) and getattr(own, "__func__", None) is not function:
            return name
    return None


def _is_narrow(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).bits < 16


def _told_from(class_names: tuple[str, ...], found: Any) -> str:
    """The name of the class of ``found``, with its module where the name alone is one of ``class_names``."""
    kind = type(found)
    return f"{kind.__module__}.{kind.__name__}" if kind.__name__ in map(_short, class_names) else kind.__name__


def _short(class_name: str) -> str:
    return class_name.partition(":")[2]
