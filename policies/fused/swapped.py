"""Modules that are replaced by changing their class to a fused subclass of their own.

The technique of ``layer``, for models of many small replaceable parts (a UNet's attentions, convolutions ...). A part
looks at itself at every call: where it is not the plain thing that it was made for, it runs its original's forward.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from ..plans import Plan
from ..structure import patched
from . import onednn, widened
from .attributes import HOOKS, hooked_everywhere
from .transforms import settled, transforming

if TYPE_CHECKING:
    from .diffusion import DiffusionState

SMALLEST_PRODUCT = 8_000_000
"""Multiplications from which oneDNN is at least level with the BLAS behind ``F.linear``; below, its call costs more
than it saves (measured on one x86 server with AVX-512: 0.3x at 10^4, 1.0x at 10^7, 1.2x at 10^8)."""


class Swapped(nn.Module):
    """Mixin that stands before an original class. Copies and pickles stay what they are, without what was derived."""

    _fused_original: ClassVar[type[nn.Module]]
    _fused_mixin: ClassVar[type[Swapped]]
    _fused_transient: ClassVar[tuple[str, ...]] = ()
    """Attributes that a copy makes anew."""
    _fused_state: DiffusionState

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What the original class behind the mixin has."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if "_fused_original" not in type(self).__dict__:  # a class that was put on top later says itself whether it can be copied
            return super().__reduce_ex__(protocol)
        return _rebuild, (self._fused_original, self._fused_mixin), self._fused_kept()

    def _fused_kept(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._fused_transient}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Of the same class, and so of one that was put on top later, as a parametrization puts it."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._fused_kept(), memo))
        return twin


_CLASSES: dict[tuple[type[nn.Module], type[Swapped]], type[nn.Module]] = {}


def swapped_class(original: type[nn.Module], mixin: type[Swapped]) -> type[nn.Module]:
    """The one subclass of ``original`` behind ``mixin``. It keeps the original's name, because libraries write a
    class's name into what they save; its qualified name differs. Who builds a model of it (``type(model).from_config``, as
    a moving average of weights does) gets one of the original's."""
    if (original, mixin) not in _CLASSES:
        _CLASSES[original, mixin] = _make_class(original, mixin)
    return _CLASSES[original, mixin]


def _make_class(original: type[nn.Module], mixin: type[Swapped]) -> type[nn.Module]:
    namespace = {
        "__module__": original.__module__,
        "__qualname__": f"Fused{original.__qualname__}",
        "__doc__": f"{original.__name__}, replaced in place.",
        "__init__": _initialising(original),
        "_fused_original": original,
        "_fused_mixin": mixin,
    }
    forward = mixin.__dict__.get("forward")
    if forward is not None:
        namespace["forward"] = functools.wraps(original.forward)(_calling(forward, original.forward))
    return type(original.__name__, (mixin, original), namespace)


def _initialising(original: type[nn.Module]) -> Any:
    """For who calls the swapped class. Who makes an instance of it and fills it by himself (a replica) does not come here."""

    @functools.wraps(original.__init__)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = original
        original.__init__(self, *args, **kwargs)

    return initialise


def _calling(forward: Any, original: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # What wrapped this method while the module was swapped still calls it afterwards.
        return (forward if isinstance(self, Swapped) else original)(self, *args, **kwargs)

    return call


def restore_class(module: nn.Module) -> None:
    """Undo a swap, also below a class that was put on top later; a module that is not swapped stays as it is."""
    swapped = next((one for one in type(module).__mro__ if "_fused_original" in one.__dict__), None)
    if swapped is None:
        return
    for name in [name for name in module.__dict__ if name.startswith("_fused_")]:
        del module.__dict__[name]
    original: type[nn.Module] = swapped.__dict__["_fused_original"]
    if type(module) is swapped:
        module.__class__ = original
    elif parametrize.is_parametrized(module) and type(module).__bases__ == (swapped,):
        _parametrize_again(module, original)
    else:
        _exchange_base(type(module), swapped, original)


def _parametrize_again(module: nn.Module, original: type[nn.Module]) -> None:
    """What torch makes of a parametrized module of class ``original``. Its copies, of the same class as it was, stay swapped."""
    module.__class__ = original
    parametrize._inject_new_class(module)
    for name in module.parametrizations:  # type: ignore[union-attr]
        parametrize._inject_property(module, name)


def _exchange_base(cls: type, before: type, after: type) -> None:
    """Somebody's subclass of ``before`` becomes one of ``after``, and stays the class that it is."""
    for base in cls.__bases__:
        if base is not before and issubclass(base, before):
            _exchange_base(base, before, after)
    cls.__bases__ = tuple(after if base is before else base for base in cls.__bases__)


def is_plain(module: Any, cls: type[nn.Module]) -> bool:
    """True where calling ``module`` means what its class says: exactly this class (or its swapped form), no hooks, no
    patched forward."""
    found = type(module)
    return (
        (found is cls or found.__dict__.get("_fused_original") is cls)
        and not any(getattr(module, name) for name in HOOKS)
        and not hooked_everywhere()
        and not patched(module)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """``x @ weight.T + bias`` for x (..., D), weight (N, D), bias (N,): (..., N)."""
    large = settled(x.numel() * weight.shape[0], SMALLEST_PRODUCT) >= SMALLEST_PRODUCT
    plain = type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)  # what is quantised has operators of its own
    if large and plan is Plan.ONEDNN and plain and not transforming() and x.is_contiguous():
        if onednn.suits(x, weight, bias) and not onednn.loses(x, weight):
            return onednn.linear(x, weight, bias)
        if widened.suits(x, weight, bias):
            return widened.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def apply(module: nn.Module, x: Tensor, plan: Plan) -> Tensor:
    """``module(x)``, by the faster operator where ``module`` is a plain linear layer."""
    if is_plain(module, nn.Linear):
        return linear(x, module.weight, module.bias, plan)  # type: ignore[arg-type]
    result: Tensor = module(x)
    return result


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether somebody wants gradients of ``tensors``, or transforms the call that they are in."""
    if transforming():
        return True
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _rebuild(original: type[nn.Module], mixin: type[Swapped]) -> nn.Module:
    return object.__new__(swapped_class(original, mixin))
