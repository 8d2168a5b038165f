"""diffusers' ``fuse_qkv_projections``: one projection for query, key and value, made by the model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .changed import Changed, NothingChanged, as_a_whole

if TYPE_CHECKING:
    from torch import nn


def replace(model: nn.Module) -> Changed:
    diffusion: Any = model
    diffusion.fuse_qkv_projections()
    if not any(getattr(one, "fused_projections", False) for one in model.modules()):
        raise NothingChanged("fuse_qkv_projections changed nothing: the model has no attention to fuse")
    return as_a_whole(model, "fuse_qkv_projections", diffusion.unfuse_qkv_projections)
