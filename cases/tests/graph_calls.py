"""A state machine of calls through captured graphs, and of what may happen between them.

On a CPU the emulator stands in for CUDA graphs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor, nn

from policies.fused.capture import BY_DEVICE
from policies.fused.graphs import Graphed

LIMIT = 4
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
DEVICES = ("cpu", pytest.param("cuda", marks=NEEDS_GPU))
Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    sample: Tensor
    extra: Any = None


class Model(nn.Module):
    """Takes nested arguments and returns nested results, as diffusion models do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3).requires_grad_(False)
        self.scale = 1.0
        self.adapters = {"scales": [1.0], "merged": []}

    def forward(self, x: Tensor, *, added: Any = None, factor: float = 1.0, as_dict: bool = True) -> Any:
        if x.shape[0] == 5:
            raise ValueError("five rows")
        out = torch.tanh(self.linear(x)) * factor * self.scale
        out = out * self.adapters["scales"][-1] + len(self.adapters["merged"])
        for extra in _tensors(added):
            out = out + extra.to(out.dtype).mean()
        halves = out.split(1, dim=-1)
        return Output(out, {"halves": list(halves), "again": out}) if as_dict else (out, factor)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for one in tree for leaf in _tensors(one)] if isinstance(tree, (list, tuple)) else []


def same(mine: Any, its: Any) -> bool:
    """Equal to the bit, with equal types, dtypes and strides all the way down."""
    if type(mine) is not type(its):
        return False
    if isinstance(mine, Tensor):
        signs = torch.equal(mine.signbit(), its.signbit())
        return mine.dtype == its.dtype and mine.stride() == its.stride() and torch.equal(mine, its) and signs
    if dataclasses.is_dataclass(mine) and not isinstance(mine, dict):
        return same(vars(mine), vars(its))
    if isinstance(mine, dict):
        return list(mine) == list(its) and all(same(mine[key], its[key]) for key in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(its) and all(map(same, mine, its))
    return repr(mine) == repr(its)


class Calls(RuleBasedStateMachine):
    """Any sequence of calls, and of what may happen between them."""

    wrapper: type[Graphed] = Graphed
    device = "cpu"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Model().to(self.device)
        backend = BY_DEVICE[self.device]()
        self.graphed = self.wrapper(self.model.forward, backend=backend, modules=(self.model,), limit=LIMIT)
        self.kept: list[tuple[Any, Any]] = []
        self.given: list[tuple[Any, Any]] = []
        self.signature: dict[str, Any] | None = None

    @rule(
        rows=st.integers(1, 5),
        nesting=st.sampled_from(("none", "dict", "list", "pair", "deep")),
        width=st.sampled_from((3, 1)),
        factor=st.sampled_from((1.0, 2.0, -0.0, 0.0, 2)),
        as_dict=st.booleans(),
        transposed=st.booleans(),
    )
    def call(self, **signature: Any) -> None:
        """A call of any signature: same result as the function, same exception."""
        self.signature = signature
        self._compare(**signature)

    @precondition(lambda self: self.signature is not None)
    @rule(times=st.integers(1, 3))
    def call_alike(self, times: int) -> None:
        """The last signature again, with other values."""
        assert self.signature is not None
        for _ in range(times):
            self._compare(**self.signature)

    @rule()
    def call_in_many_ways(self) -> None:
        for rows in (1, 2, 3, 4):
            for as_dict in (True, False):
                self._compare(rows, "none", 3, 2.0, as_dict, False)

    def _compare(self, rows: int, nesting: str, width: int, factor: float, as_dict: bool, transposed: bool) -> None:
        dtype = self.model.linear.weight.dtype
        with torch.device(self.device):
            x = torch.randn(3, rows, dtype=dtype).t() if transposed else torch.randn(rows, 3, dtype=dtype)
            kwargs = {"added": _nested(nesting, width), "factor": factor, "as_dict": as_dict}
        if factor == 1.0:
            del kwargs["factor"]
        self.given.append(((x, kwargs), copy.deepcopy((x, kwargs))))
        del self.given[:-6]
        try:
            expected = self.model(x, **kwargs)
        except ValueError as problem:
            with pytest.raises(ValueError, match=str(problem)):
                self.graphed(x, **kwargs)
            return
        result = self.graphed(x, **kwargs)
        assert same(result, expected)
        self.kept.append((result, expected))
        del self.kept[:-6]

    @rule(dtype=st.sampled_from((torch.float32, torch.float64)))
    def change_the_dtype(self, dtype: torch.dtype) -> None:
        self.model.linear.to(dtype)

    @rule()
    def update_a_weight_in_place(self) -> None:
        self.model.linear.weight.mul_(1.5)

    @rule()
    def move_a_weight(self) -> None:
        self.model.linear.weight.data = self.model.linear.weight.data * -0.5

    @rule()
    def exchange_a_weight(self) -> None:
        self.model.linear.weight = nn.Parameter(torch.randn_like(self.model.linear.weight), requires_grad=False)

    @rule(scale=st.sampled_from((1.0, 3.0)))
    def set_an_attribute(self, scale: float) -> None:
        self.model.scale = scale

    @rule(scale=st.sampled_from((1.0, 3.0)))
    def set_what_lies_in_an_attribute(self, scale: float) -> None:
        """As adapters that are scaled."""
        self.model.adapters["scales"][0] = scale

    @rule()
    def lengthen_what_lies_in_an_attribute(self) -> None:
        """As adapters that are merged."""
        self.model.adapters["merged"].append("a")

    @precondition(lambda self: self.kept)
    @rule()
    def write_to_a_result(self) -> None:
        """A caller may do with its results what it likes."""
        result, expected = self.kept.pop()
        for one in (result, expected):
            (one.sample if isinstance(one, Output) else one[0]).zero_()
        assert same(result, expected)
        self.kept.append((result, expected))

    @invariant()
    def results_that_were_kept_stay_what_they_were(self) -> None:
        assert all(same(result, expected) for result, expected in self.kept)

    @invariant()
    def arguments_stay_what_they_were(self) -> None:
        assert all(same(given, before) for given, before in self.given)

    @invariant()
    def captures_are_bounded(self) -> None:
        assert len(self.graphed) <= LIMIT


def _nested(kind: str, width: int) -> Any:
    one, two = torch.randn(2, width), torch.randn(1, width)
    return {
        "none": None,
        "dict": {"text": one, "time": two},
        "list": [one, two],
        "pair": Pair(one, two),
        "deep": {"a": [one, {"b": (two,)}], "c": OrderedDict(d=one)},
    }[kind]


DEPTH = settings(
    max_examples=40,
    stateful_step_count=25,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
