"""A case on another device: models and inputs are made on the CPU, by the same numbers as ever, and moved there."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .case import Case, Example, Inputs, Refusal, Workload
from .nested import mapped


def placed(case: Case, device: str) -> Case:
    """``case`` with its models and inputs on ``device``; itself where they are there."""
    if device == case.device:
        return case
    return case.changed(_Placed, device=device)


def kind_of(case: Case) -> type[Case]:
    """The class of ``case`` as it stands in its file, wherever the case was placed and whatever was changed."""
    return next(one for one in type(case).__mro__ if issubclass(one, Case) and one.written)


@contextlib.contextmanager
def giving_back(device: str) -> Iterator[None]:
    """Memory of a GPU that was taken inside is given back at the end, for the processes beside this one."""
    try:
        yield
    finally:
        if device != "cpu":
            gc.collect()
            torch.cuda.empty_cache()


class _Placed(Case):
    written = False

    def build(self, example: Example, **overrides: Any) -> nn.Module:
        return super().build(example, **overrides).to(self.device)  # type: ignore[safe-super]

    def inputs(self, example: Example) -> Inputs:
        made = super().inputs(example)  # type: ignore[safe-super]
        valid = None if made.valid is None else made.valid.to(self.device)
        return Inputs(kwargs=self._here(made.kwargs), valid=valid)

    def refusals(self) -> tuple[Refusal, ...]:
        return tuple(replace(one, build=self._built_here(one.build)) for one in super().refusals())

    def workload_module(self, workload: Workload) -> nn.Module:
        return super().workload_module(workload).to(self.device)

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        return self._here(super().workload_call(module, workload))

    def _built_here(self, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: build().to(self.device)

    def _here(self, value: dict[str, Any]) -> dict[str, Any]:
        return mapped(value, lambda one: one.to(self.device))
