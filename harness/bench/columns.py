"""The ways a workload is run: the original as it comes, compiled, and replaced.

A column is a module, ready and warm, with the call it is timed by. All columns of a workload hold the same weights.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policies import replace_module
from policies.plans import Plan

from ..case import Case, Workload
from ..nested import cast
from ..timing.devices import Device
from ..trial import Replacer

EAGER, SDPA, ORIGINAL = "original eager", "original sdpa", "original"
COMPILED, FROZEN = "original compiled", "original compiled, frozen"
REPLACED, REPLACED_COMPILED, PLANNED = "replaced", "replaced + compile", "replaced, {}"
GRAPHED = "{} + graph"
_NAMES = {None: ORIGINAL, "eager": EAGER, "sdpa": SDPA}


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """``call`` runs ``module`` once and returns its output. ``replaced`` counts layers, in replaced columns.

    ``plain`` is what a compiled or captured column's call was made of: there alone does a fused layer count its calls.
    """

    name: str
    module: nn.Module
    call: Callable[[], Any]
    prepare_seconds: float
    replaced: int | None = None
    plain: Callable[[], Any] | None = None

    def output(self) -> Tensor:
        """The tensor that the column is judged by."""
        return first_tensor(self.call())


def original_columns(case: Case, module: nn.Module, workload: Workload) -> list[Column]:
    """The original as transformers offers it: eager, and sdpa where there is such a variant.

    Each is a copy: ``module`` itself is free to be replaced.
    """
    columns = []
    for implementation in attention_variants(module) or (None,):
        variant = copy.deepcopy(module)
        if implementation is not None:
            set_attention(variant, implementation)
        columns.append(_column(_NAMES[implementation], case, variant, workload))
    return columns


def replaced_column(case: Case, module: nn.Module, workload: Workload, replacer: Replacer = replace_module) -> Column:
    """``module`` replaced in place. ``prepare_seconds`` is what replacing took."""
    return _replaced(REPLACED, case, module, workload, replacer)


def planned_column(case: Case, module: nn.Module, workload: Workload, plan: Plan) -> Column:
    """A copy of ``module`` replaced by ``plan``."""
    name = PLANNED.format(plan.value)
    return _replaced(name, case, copy.deepcopy(module), workload, functools.partial(replace_module, plan=plan))


def _replaced(name: str, case: Case, module: nn.Module, workload: Workload, replacer: Replacer) -> Column:
    start = time.perf_counter()
    handle = replacer(module)
    seconds = time.perf_counter() - start
    return _column(name, case, module, workload, seconds=seconds, replaced=len(handle.replaced))


def graphed_column(column: Column, device: Device) -> Column:
    """The calls of ``column`` captured as a graph. Raises what torch raises where they cannot be."""
    start = time.perf_counter()
    replay = device.captured(column.call)
    seconds = column.prepare_seconds + time.perf_counter() - start
    name = GRAPHED.format(column.name)
    return dataclasses.replace(column, name=name, call=replay, plain=column.call, prepare_seconds=seconds)


def compiled_columns(case: Case, module: nn.Module, workload: Workload) -> list[Column]:
    """``torch.compile`` of the original, without and with freezing, and of the replacement."""
    torch.compiler.reset()
    replaced = copy.deepcopy(module)
    handle = replace_module(replaced)
    count = len(handle.replaced)
    return [
        _compiled(COMPILED, case, copy.deepcopy(module), workload),
        _compiled(FROZEN, case, copy.deepcopy(module), workload, freezing=True),
        _compiled(REPLACED_COMPILED, case, replaced, workload, replaced=count),
    ]


def attention_variants(module: nn.Module) -> tuple[str, ...]:
    """Attention implementations that the module can be switched between; the best of transformers' own last."""
    configs = _switchable_configs(module)
    if not configs:
        return ()
    return ("eager", "sdpa") if configs[0]._attn_implementation == "sdpa" else ("eager",)


def set_attention(module: nn.Module, implementation: str) -> None:
    for config in _switchable_configs(module):
        config._attn_implementation = implementation


def first_tensor(output: Any) -> Tensor:
    """The tensor that a call's output is judged by."""
    if isinstance(output, Tensor):
        return output
    first = output[0]
    assert isinstance(first, Tensor)
    return first


def _switchable_configs(module: nn.Module) -> list[Any]:
    """Configurations in which transformers looks up the attention to use."""
    configs = [getattr(one, "config", None) for one in module.modules()]
    return [config for config in configs if hasattr(config, "_attn_implementation")]


def _column(
    name: str, case: Case, module: nn.Module, workload: Workload, *, seconds: float = 0.0, replaced: int | None = None
) -> Column:
    weight = next(module.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kwargs = cast(case.workload_call(module, workload), weight.dtype)
    step = case.workload_step(module, kwargs)
    return Column(name=name, module=module, call=step, prepare_seconds=seconds, replaced=replaced)


def _compiled(
    name: str, case: Case, module: nn.Module, workload: Workload, *, freezing: bool = False, replaced: int | None = None
) -> Column:
    from torch._inductor import config

    plain = _column(name, case, module, workload, replaced=replaced)
    call = torch.compile(plain.call, dynamic=False)
    start = time.perf_counter()
    with config.patch(freezing=freezing):
        call()
        call()
    seconds = time.perf_counter() - start
    return Column(name=name, module=module, call=call, prepare_seconds=seconds, replaced=replaced, plain=plain.call)
