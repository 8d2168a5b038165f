"""Which adapters there are, by name and without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from ..catalogue import is_installed

if TYPE_CHECKING:
    from torch import nn

    from .changed import Changed


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """``module`` holds ``replace(model)``, for replacements of a whole model; a set of policies has none.

    ``cases`` are those that it fits. ``lossy``: it may change the numbers, and is judged by an error budget;
    ``rounds_inputs``: the budget is for linear layers whose inputs are rounded to int8, and not their weights alone.
    ``gpu``: it runs on a GPU only. ``effort``: what an example of it costs, in examples of others.
    """

    name: str
    title: str
    package: str
    distribution: str
    module: str | None = None
    extra: str | None = None
    cases: tuple[str, ...] = ()
    lossy: bool = False
    rounds_inputs: bool = False
    gpu: bool = False
    effort: float = 1.0

    @property
    def unavailable(self) -> str | None:
        """Why it cannot be judged here, or None; one line that says what to do."""
        if self.gpu and not _has_gpu():
            return f"{self.distribution} runs on a CUDA GPU, and there is none here (this adapter has never been run on one)"
        if not is_installed(self.package):
            wanted = f"'replace-policy-harness[{self.extra}]'" if self.extra else self.distribution
            return f"{self.distribution} is not installed: pip install {wanted}"
        return None

    def replace(self, model: nn.Module) -> Changed:
        assert self.module is not None
        changed: Changed = import_module(self.module).replace(model)
        return changed


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


ADAPTERS = (
    Adapter(
        name="deepspeed",
        title="DeepSpeed's replace_policies and generic_policies",
        package="deepspeed",
        distribution="deepspeed",
        extra="deepspeed",
    ),
    Adapter(
        name="compile",
        title="torch.compile of the model",
        module="policies.foreign.compiled",
        package="torch",
        distribution="torch",
        cases=("bert", "llama"),
        effort=8.0,
    ),
    Adapter(
        name="fuse_qkv",
        title="diffusers' fuse_qkv_projections",
        module="policies.foreign.fused_qkv",
        package="diffusers",
        distribution="diffusers",
        cases=("unet", "vae"),
    ),
    Adapter(
        name="channels_last",
        title="channels_last memory format",
        module="policies.foreign.channels_last",
        package="torch",
        distribution="torch",
        cases=("unet", "vae"),
    ),
    Adapter(
        name="int8",
        title="torchao int8 weights",
        module="policies.foreign.int8",
        package="torchao",
        distribution="torchao",
        extra="torchao",
        cases=("bert", "gpt2", "opt", "llama"),
        lossy=True,
    ),
    Adapter(
        name="int8_dynamic",
        title="torchao int8 weights and inputs",
        module="policies.foreign.int8_dynamic",
        package="torchao",
        distribution="torchao",
        extra="torchao",
        cases=("bert", "gpt2", "opt", "llama"),
        lossy=True,
        rounds_inputs=True,
    ),
    Adapter(
        name="liger",
        title="Liger-Kernel",
        module="policies.foreign.liger",
        package="liger_kernel",
        distribution="liger-kernel",
        cases=("llama",),
        lossy=True,
        gpu=True,
    ),
    Adapter(
        name="kernels",
        title="kernels from the Hub",
        module="policies.foreign.hub_kernels",
        package="kernels",
        distribution="kernels",
        cases=("llama",),
        lossy=True,
        gpu=True,
    ),
)
