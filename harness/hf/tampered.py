"""Models that look as usual and are not: each has to be refused by name, by every transformers policy of this project."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map_only

from ..case import Example, NotToBeHad, Refusal


class AdaptedLinear(nn.Linear):
    """Stands for every linear that does more than it says: quantised, low-rank adapted, sharded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2.0


class ScaledDropout(nn.Dropout):
    """Stands for every module without parameters that does more than it says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2.0


class ScaledTensor(torch.Tensor):
    """Stands for every tensor that multiplies in a way of its own: quantised, compressed, sharded."""

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return nn.Parameter(self.detach().clone(), requires_grad=self.requires_grad)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2.0 * result.as_subclass(torch.Tensor) if func in (nn.functional.linear, torch.addmm) else result


class _Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2.0 * weight


def tampered_layers(build: Callable[[], nn.Module], layer_class: str, example: Example | None = None) -> tuple[Refusal, ...]:
    """Refusals of models made by ``build``, whose layers are of ``layer_class`` (``module:Class``), to be run with ``example``
    where it is given."""
    tampered = (
        Refusal(name=name, feature=feature, build=_tampered(build, layer_class, tamper), example=example)
        for name, feature, tamper in (
            ("an adapted linear", "AdaptedLinear", _adapt),
            ("a parametrised weight", "Parametrized", _parametrise),
            ("a parameter nobody knows", "extra_gate", extra_parameter),
            ("a subclass of the layer", "subclass", subclass),
            ("int8 weights", "int8", _int8),
            ("weights in 8 bits", "float8", _float8),
            ("a weight with a code of its own", "ScaledTensor", _wrap),
            ("a patched linear", "forward of its own", _patch),
            ("heads that contradict the projections", "heads", count_heads_otherwise),
        )
    )
    if example is not None:
        return (*tampered, *_each_part(build, layer_class, example))
    return (*tampered, Refusal(name="a part of another class", feature=__name__, build=_with_other_parts(build, layer_class)))


def other_attention(build: Callable[[], nn.Module], layer_class: str, example: Example | None = None) -> Refusal:
    """The refusal of an attention implementation whose masks mean something else."""
    return Refusal(
        name="another attention implementation",
        feature="flex_attention",
        build=_tampered(build, layer_class, _attend_otherwise),
        example=example,
    )


def _each_part(build: Callable[[], nn.Module], layer_class: str, example: Example) -> Iterator[Refusal]:
    """A model for each part of a layer that has to be known, in which that part gives twice what it should."""
    for name, part in _layers(build(), layer_class)[0].named_modules():
        if name and _has_to_be_known(part):
            double = functools.partial(_doubled, name=name)
            made = _tampered(build, layer_class, double)
            yield Refusal(name=f"{name} of another class", feature=__name__, build=made, example=example)


def _doubled(layer: nn.Module, name: str) -> None:
    part = layer.get_submodule(name)
    own = type(part)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda one: 2 * one, own.forward(self, *args, **kwargs))

    part.__class__ = type(own.__name__, (own,), {"forward": forward})  # somebody's own, called as the one that is known


def _tampered(build: Callable[[], nn.Module], layer_class: str, tamper: Callable[[nn.Module], None]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = build()
        for layer in _layers(model, layer_class):
            tamper(layer)
        return model

    return made


def _with_other_parts(build: Callable[[], nn.Module], layer_class: str) -> Callable[[], nn.Module]:
    """Layers by the name of the part that is somebody's subclass in each, with a forward that may do more. Parts are what has
    parameters, and dropouts: a policy may take others as they are, such as activations."""

    def made() -> nn.Module:
        layer = _layers(build(), layer_class)[0]
        parts = [name for name, part in layer.named_modules() if name and _has_to_be_known(part)]
        layers = {name.replace(".", " "): copy.deepcopy(layer) for name in parts}
        for name, one in zip(parts, layers.values(), strict=True):
            subclass(one.get_submodule(name))
        return nn.ModuleDict(layers)

    return made


def _has_to_be_known(part: nn.Module) -> bool:
    return isinstance(part, nn.Dropout) or next(part.parameters(), None) is not None


def _layers(model: nn.Module, layer_class: str) -> list[nn.Module]:
    cls = resolve_name(layer_class)
    return [one for one in model.modules() if type(one) is cls]


def _first_linear(layer: nn.Module) -> tuple[nn.Module, str, nn.Module]:
    """The first linear of a layer: its parent, its name there, itself."""
    for parent in layer.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D":
                return parent, name, child
    raise NotToBeHad(f"{type(layer).__name__} has no linear")


def _adapt(layer: nn.Module) -> None:
    parent, name, linear = _first_linear(layer)
    weight = linear.get_parameter("weight")
    outputs, inputs = weight.shape
    setattr(parent, name, AdaptedLinear(inputs, outputs))


def _parametrise(layer: nn.Module) -> None:
    _, _, linear = _first_linear(layer)
    parametrize.register_parametrization(linear, "weight", _Doubled())


def extra_parameter(layer: nn.Module) -> None:
    layer.register_parameter("extra_gate", nn.Parameter(torch.ones(1)))


def drop_otherwise(layer: nn.Module) -> None:
    """In the place of each dropout another, which computes something in evaluation too."""
    for module in tuple(layer.modules()):
        for name, part in tuple(module.named_children()):
            if type(part) is nn.Dropout:
                setattr(module, name, ScaledDropout())


def subclass(layer: nn.Module) -> None:
    cls = type(layer)
    layer.__class__ = type(cls.__name__, (cls,), {})


def _int8(layer: nn.Module) -> None:
    _store(layer, torch.int8)


def _float8(layer: nn.Module) -> None:
    _store(layer, torch.float8_e4m3fn)


def _wrap(layer: nn.Module) -> None:
    _, _, linear = _first_linear(layer)
    weight = linear.get_parameter("weight").detach().as_subclass(ScaledTensor)
    linear.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


def _store(layer: nn.Module, dtype: torch.dtype) -> None:
    _, _, linear = _first_linear(layer)
    weight = linear.get_parameter("weight").to(dtype)
    linear.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


_HEADS = (
    "num_heads",
    "n_heads",
    "num_attention_heads",
    "num_attention_heads_per_partition",
    "num_key_value_groups",
    "head_size",
)
"""What attentions call the number of heads, or of queries to a key, or what they derive it from."""


def count_heads_otherwise(layer: nn.Module) -> None:
    """Many an attention takes the number of heads from the shapes, and never looks at the number that is written down."""
    found = [(part, name) for part in layer.modules() for name in _HEADS if hasattr(part, name)]
    if not found:
        raise NotToBeHad(f"{type(layer).__name__} counts no heads")
    for part, name in found:
        setattr(part, name, getattr(part, name) + 1)


def _attend_otherwise(layer: nn.Module) -> None:
    configs: list[Any] = [part.config for part in layer.modules() if hasattr(part, "config")]
    if not configs:
        raise NotToBeHad(f"{type(layer).__name__} has no configuration")
    for config in configs:
        config._attn_implementation = "flex_attention"


def _patch(layer: nn.Module) -> None:
    """What libraries that hook into a model do: wrap one instance's forward."""
    _, _, linear = _first_linear(layer)
    own = linear.forward
    linear.forward = lambda *args: 2.0 * own(*args)
