"""Replicas of modules, as ``nn.DataParallel`` makes them for several GPUs, here on the CPU and with weights of their own."""

from __future__ import annotations

from typing import Any

from torch import nn


def replica(module: nn.Module, scale: float) -> Any:
    """One whose weights are ``scale`` times those of ``module``; they are no parameters there."""
    made: Any = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(made, name, None if parameter is None else scale * parameter.detach())
    for name, child in module._modules.items():
        if child is not None:
            made._modules[name] = replica(child, scale)
    return made
