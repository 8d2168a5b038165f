"""Diffusion models that look as usual and are not: each has to be refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from harness.case import Refusal


class _QuantisedParameter(nn.Parameter):
    """Stands for parameters that are more than their numbers: quantised, sharded."""


def refused_diffusion(build: Callable[[], nn.Module]) -> tuple[Refusal, ...]:
    """Refusals of diffusion models made by ``build``."""
    return tuple(
        Refusal(name=name, feature=feature, build=_changed(build, change))
        for name, feature, change in (
            ("a patched forward", "forward is patched", _patch),
            ("projections fused by diffusers", "fuse_qkv_projections", _fuse),
            ("a quantised parameter", "QuantisedParameter", _quantise),
            ("weights in 8 bits", "float8", _narrow),
            ("a subclass of the model", "subclass", _subclass),
        )
    )


def _changed(build: Callable[[], nn.Module], change: Callable[[Any], None]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = build()
        change(model)
        return model

    return made


def _patch(model: Any) -> None:
    own = model.forward
    model.forward = lambda *args, **kwargs: tree_map_only(torch.Tensor, lambda one: 2 * one, own(*args, **kwargs))


def _fuse(model: Any) -> None:
    model.fuse_qkv_projections()


def _quantise(model: Any) -> None:
    conv = _first_conv(model)
    conv.weight = _QuantisedParameter(conv.weight.data)


def _narrow(model: Any) -> None:
    conv = _first_conv(model)
    conv.weight = nn.Parameter(conv.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


def _first_conv(model: nn.Module) -> nn.Conv2d:
    return next(one for one in model.modules() if isinstance(one, nn.Conv2d))


def _subclass(model: Any) -> None:
    model.__class__ = type("Adapted", (type(model),), {})
