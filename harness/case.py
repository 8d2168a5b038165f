"""What a case is: random tiny models of one architecture, their inputs, and the real sizes to time.

A case is declarative. Its axes are independent of each other and listed simplest value first, which buys four things at
once: examples are drawn without filtering, a failing example shrinks axis by axis, the shrunk example reads as a
diagnosis ("fails only with kv_groups=3 and padding=left"), and coverage can be counted without knowing the architecture.
Where one choice depends on another, the case derives it (hidden size = heads x head size) instead of drawing it.
"""

from __future__ import annotations

import contextlib
import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st

if TYPE_CHECKING:
    from torch import Tensor, nn

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Axis:
    """One thing that examples vary. ``values`` are simplest first.

    ``claimed``: the case promises that every value is exercised, and coverage is held to it. ``large`` are values as real
    models have them: too slow for every example, they are taken where size itself is asked about. ``largest`` are those of
    the largest models, too slow but for one axis at a time.
    """

    name: str
    values: tuple[Value, ...]
    claimed: bool = True
    large: tuple[Value, ...] = ()
    largest: tuple[Value, ...] = ()

    @property
    def simplest(self) -> Value:
        return self.values[0]


def flag(name: str, *, simplest: bool) -> Axis:
    """A yes-or-no axis."""
    return Axis(name, (simplest, not simplest))


@dataclass(frozen=True)
class Example:
    """One random model with its inputs, as a description: the same description always gives the same numbers."""

    values: Mapping[str, Value]
    seed: int

    def __getitem__(self, axis: str) -> Any:
        return self.values[axis]

    def with_value(self, axis: str, value: Value) -> Example:
        return Example({**self.values, axis: value}, self.seed)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items()) + f", seed={self.seed}"


def _evenly_seeded(values: Mapping[str, Value], number: int) -> Example:
    return Example(values, random.Random(f"{number} {values}").randrange(2**16))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Arguments of one model call. ``valid`` marks the positions whose outputs count: (batch, tokens) bool, or None
    where all do."""

    kwargs: dict[str, Any]
    valid: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Real published dimensions to time, one layer or one module, random weights."""

    name: str
    phase: str
    """``encoder``, ``prefill``, ``decode`` or ``image``."""
    batch: int
    tokens: int
    """Tokens a call; for images the side in latent pixels."""
    past: int = 0
    """Tokens already in the cache (decode)."""
    room: int = 0
    """Tokens that a static cache has room for; 0 for a cache that grows."""
    config: Mapping[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0
    """Rough size of the module's fp32 weights, to fit a memory budget."""
    image_flops: float = 0.0
    """Rough operations of a call on an image, to fit a time budget; tokens tell them of a layer by themselves."""

    @property
    def flops(self) -> float:
        """Rough operations of a call: two for each weight and token."""
        return self.image_flops or 2 * self.weight_bytes / 4 * self.batch * self.tokens

    @property
    def shape(self) -> str:
        what = "px latents" if self.phase == "image" else "tokens"
        past = f" after {self.past}" if self.past else ""
        room = f" in a static cache of {self.room}" if self.room else ""
        return f"batch {self.batch}, {self.tokens} {what}{past}{room}"

    @property
    def keys(self) -> int:
        """Keys that a query meets, those that are masked among them."""
        return self.room or self.past + self.tokens


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A model that must be refused: ``feature`` is a word that the refusal has to contain. Where there is an ``example``, the
    model takes its inputs, and to compute what the original does with them is as good. ``build`` raises ``NotToBeHad`` where
    the layers have no such feature."""

    name: str
    feature: str
    build: Callable[[], nn.Module]
    example: Example | None = None


class NotToBeHad(LookupError):
    """A layer has no part of the kind that is to be changed."""


class Case(ABC):
    """One architecture under test."""

    name: ClassVar[str]
    title: ClassVar[str]
    axes: ClassVar[tuple[Axis, ...]]
    workloads: ClassVar[tuple[Workload, ...]] = ()
    effort: ClassVar[float] = 1.0
    """What an example costs, in examples of a transformer layer."""
    device: ClassVar[str] = "cpu"
    """Where its models and inputs are."""
    layered: ClassVar[bool] = True
    """Whether single layers are replaced (and not the model as a whole)."""
    cached: ClassVar[bool] = False
    """Whether some of its models keep a key/value cache; which ones, ``caches`` says."""
    static_cache: ClassVar[bool] = False
    """Whether the originals are right with a preallocated cache."""
    input_axes: ClassVar[tuple[str, ...]] = ()
    """Names that, where they are axes, shape the inputs and leave the model alone."""
    speaks_transformers: ClassVar[bool] = False
    """Whether its models take transformers' keyword arguments (``use_cache``, ``return_dict``, ``output_attentions`` ...)
    and return its outputs."""
    written: ClassVar[bool] = True
    """Whether its class stands in a file, rather than being made here of one that does."""

    def changed(self, *before: type, **facts: Any) -> Case:
        """A copy, with ``facts`` instead of what its class says, and with methods of the classes that come ``before`` it."""
        other, kind = copy.copy(self), type(self)
        for name in ("strategy", *facts):
            vars(other).pop(name, None)
        other.__class__ = type(kind.__name__, (*before, kind), {**facts, "written": False})
        return other

    @property
    def made_with(self) -> tuple[Any, ...]:
        """What its class is made with: dataclasses, whose ``repr`` says all that they hold."""
        return ()

    @cached_property
    def strategy(self) -> st.SearchStrategy[Example]:
        """Draws examples. Drawn numbers crowd at a few values; seeds, by which much is chosen, are made of the whole draw."""
        values = st.fixed_dictionaries({axis.name: st.sampled_from(axis.values) for axis in self.axes})
        return st.builds(_evenly_seeded, values, st.integers(0, 2**16 - 1))

    @property
    def simplest(self) -> Example:
        return Example({axis.name: axis.simplest for axis in self.axes}, 0)

    def admitted(self, example: Example) -> Example:
        """``example`` with values that its axes do not have at their simplest."""
        for axis in self.axes:
            if example.values.get(axis.name) not in axis.values:
                example = example.with_value(axis.name, axis.simplest)
        return example

    @abstractmethod
    def build(self, example: Example) -> nn.Module:
        """A tiny float32 model in eval mode with every parameter and buffer that may vary randomised."""

    @abstractmethod
    def inputs(self, example: Example) -> Inputs:
        """Inputs in float32 for the model of ``example``."""

    @abstractmethod
    def expected(self, example: Example) -> int:
        """How many layers a policy has to replace. Stated by the case, not asked of the policy."""

    @abstractmethod
    def run(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        """Call ``model`` and return every output that has to agree, by name; positions are dimension 1."""

    def call(self, model: nn.Module, inputs: Inputs) -> Any:
        """What ``model`` itself returns, where it is replaced as a whole: its form has to agree, too."""
        return self.run(model, inputs)

    def outputs(self, returned: Any) -> dict[str, Tensor]:
        """What ``run`` takes out of what ``call`` returned."""
        return dict(returned)

    def caches(self, example: Example) -> bool:
        """Whether the model of ``example`` generates with a key/value cache."""
        return self.cached

    def refusals(self) -> tuple[Refusal, ...]:
        """Models with a feature that this case's policy has to refuse by name."""
        return ()

    def changed_layers(self) -> tuple[Refusal, ...]:
        """The same for a policy from outside, whose replacement may do as well what a changed original does."""
        return tuple(replace(one, example=one.example or self.simplest) for one in self.refusals())

    def workloads_on(self, device: str) -> tuple[Workload, ...]:
        """What is timed on a device of this type, the most telling first."""
        return self.workloads

    def workload_module(self, workload: Workload) -> nn.Module:
        """The layer or module of ``workload``, float32, eval mode, random weights."""
        raise NotImplementedError(f"{self.name} lists workloads but builds none")

    def workload_call(self, module: nn.Module, workload: Workload) -> dict[str, Any]:
        """Keyword arguments for one timed call of ``module``, float32."""
        raise NotImplementedError(f"{self.name} lists workloads but builds none")

    def workload_step(self, module: nn.Module, call: dict[str, Any]) -> Callable[[], Any]:
        """What is timed: ``module`` called with ``call``, the same at every time."""
        return lambda: module(**call)

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """What the original needs around it to run here (stand-ins for a GPU, process groups)."""
        yield
