"""One example under judgement: the original, a replaced copy of it, and evidence that both are what they seem.

A property receives a ``Trial`` and asks it for models. Every replaced model it hands out has passed the checks that
keep a pass from being vacuous: the copy is bit-identical and shares no storage with the original, and as many layers
were replaced as the case says there are.
"""

from __future__ import annotations

import contextlib
import copy
import textwrap
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .case import Case, Example, Inputs, Value
from .exact import exact_mode, unwatched
from .nested import cast
from .process import SHARED


class Handle(Protocol):
    """What a replacer gives back; ``policies.replace.Replacement`` is one."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def replaced(self) -> tuple[Any, ...]: ...
    @property
    def left(self) -> tuple[Any, ...]: ...
    def revert(self) -> None: ...


Replacer = Callable[[nn.Module], Handle]
T = TypeVar("T")


class Disagreement(AssertionError):
    """A property does not hold on an example. ``error`` is relative."""

    def __init__(self, message: str, *, error: float | None = None) -> None:
        super().__init__(message)
        self.error = error


class ReplacementRaised(Disagreement):
    """What a property asked of the replacement raised, and its original did it."""


class Vacuous(Exception):
    """An example that shows nothing: the original's output is dead, or nothing was there to replace."""


class NothingToAsk(Exception):
    """An example of which a property asks nothing, because the original cannot do it."""


class OriginalFailed(Exception):
    """The original itself raised: nothing can be judged."""


@dataclass
class Evidence:
    """What one trial can show for itself."""

    replaced: int = 0
    expected: int = 0
    worst_error: float = 0.0
    refusals: list[str] = field(default_factory=list)
    replays: int = 0
    """Calls that were replayed from a captured graph."""
    budgets_used: list[float] = field(default_factory=list)
    """Share of the error budget used, for each example that the rounding tier judged."""
    built: list[Example] = field(default_factory=list)
    """Examples whose models were built: those that were judged, whatever example was drawn."""
    not_asked: dict[str, str] = field(default_factory=dict)
    """What a property leaves out because an original cannot do it, each with what that raised first."""

    def note(self, error: float) -> None:
        self.worst_error = max(self.worst_error, error)

    def leave_out(self, what: str, why: BaseException) -> None:
        """Say what is not asked; why the original failed. What ran out of memory is no excuse: raises ``why``."""
        if why.__cause__ is not None and ran_out_of_memory(why.__cause__):
            raise why
        self.not_asked.setdefault(what, textwrap.shorten(str(why), 120, placeholder=" ..."))


def ran_out_of_memory(problem: BaseException) -> bool:
    """Whether ``problem`` says as much of what else takes memory as of who asked for it. On a CPU torch raises a RuntimeError."""
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(problem)


@contextlib.contextmanager
def original_side(doing: str = "") -> Iterator[None]:
    """Whatever is raised inside is the original's own failure: it becomes ``OriginalFailed``."""
    try:
        yield
    except (Disagreement, OriginalFailed, Vacuous):
        raise
    except Exception as problem:
        what = f"raised {type(problem).__name__}{doing and ' ' + doing}"
        raise OriginalFailed(f"the original {what}: {problem}") from problem


@contextlib.contextmanager
def replacement_side(doing: str) -> Iterator[None]:
    """Whatever is raised inside, by a replacement whose original raises nothing, is said with what was asked of it."""
    try:
        yield
    except (Disagreement, Vacuous, OriginalFailed):
        raise
    except Exception as problem:
        if ran_out_of_memory(problem):
            raise
        raise ReplacementRaised(f"the replacement raised {type(problem).__name__} {doing}: {problem}") from problem


class Trial:
    """See the module. Models and inputs are of ``dtype``, as cases make them in float32, in exact mode in float64; ``numbers``
    are others for weights and inputs, while all that the seed chooses otherwise stays."""

    def __init__(
        self,
        case: Case,
        example: Example,
        replacer: Replacer,
        *,
        dtype: torch.dtype = torch.float64,
        numbers: int = 0,
        evidence: Evidence | None = None,
    ) -> None:
        self.case = case
        self.example = example
        self.replacer = replacer
        self.dtype = dtype
        self.numbers = numbers
        self.evidence = Evidence() if evidence is None else evidence
        self._fused: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def on(self, example: Example) -> Trial:
        """A trial of another example that adds to the same evidence; this one where the example is its own."""
        if example == self.example:
            return self
        return self._with(example, self.numbers, self.dtype)

    def with_numbers(self, numbers: int) -> Trial:
        """The trial with other weights and inputs, and all else as it is."""
        return self._with(self.example, numbers, self.dtype)

    def in_dtype(self, dtype: torch.dtype) -> Trial:
        """The trial with models and inputs of another dtype."""
        return self._with(self.example, self.numbers, dtype)

    def _with(self, example: Example, numbers: int, dtype: torch.dtype) -> Trial:
        return Trial(self.case, example, self.replacer, dtype=dtype, numbers=numbers, evidence=self.evidence)

    def _numbered(self, example: Example) -> Example:
        return Example(example.values, example.seed + self.numbers)

    def vary(self, **values: Value) -> Trial:
        """The trial with these axes changed; names that the case has no axis for are passed over."""
        return self.on(Example({**self.example.values, **_known(values, self.example)}, self.example.seed))

    def at_least(self, axis: str, least: int) -> Trial:
        """The trial with ``axis`` at ``least`` or above: the smallest value that is, where it has to change."""
        values = next((one.values for one in self.case.axes if one.name == axis), ())
        enough = sorted(one for one in values if isinstance(one, int) and one >= least)
        return self if not enough or self.example[axis] >= least else self.vary(**{axis: enough[0]})

    def suited(self, suits: Callable[[Example], bool]) -> Trial:
        """The trial itself if its example suits, or else changed in the one axis that makes it suit."""
        if suits(self.example):
            return self
        for example in (self.example.with_value(axis.name, value) for axis in self.case.axes for value in axis.values):
            if suits(example):
                return self.on(example)
        raise Vacuous(f"no example of {self.case.name} suits, whichever axis is changed")

    def mode(self) -> contextlib.AbstractContextManager[Any]:
        """What the trial's models are called in."""
        return exact_mode() if self.dtype is torch.float64 else torch.no_grad()

    @cached_property
    def original(self) -> nn.Module:
        self.evidence.built.append(self.example)
        model = self.case.build(self._numbered(self.example))
        with unwatched():
            return model if self.dtype is torch.float32 else model.to(self.dtype)

    @cached_property
    def inputs(self) -> Inputs:
        return self.fresh_inputs()

    def fresh_inputs(self) -> Inputs:
        """The example's inputs, newly made."""
        return self.inputs_of(self.example)

    def inputs_of(self, example: Example) -> Inputs:
        """The inputs of ``example``, which differs from this trial's in seed and input axes at most."""
        inputs = self.case.inputs(self._numbered(example))
        return inputs if self.dtype is torch.float32 else cast(inputs, self.dtype)

    @cached_property
    def expected_outputs(self) -> dict[str, Tensor]:
        return self.run_original(self.inputs)

    def run_original(self, inputs: Inputs) -> dict[str, Tensor]:
        with original_side():
            return self.case.run(self.original, inputs)

    def asked(self, what: str, ask: Callable[[], T]) -> T | None:
        """What an original gives when it is asked; None where it cannot, which the evidence says of ``what``."""
        try:
            with original_side():
                return ask()
        except OriginalFailed as failure:
            self.evidence.leave_out(what, failure)
            return None

    def copy(self) -> nn.Module:
        """A bit-identical copy of the original that shares no storage with it."""
        original = self.original
        with unwatched():
            twin = copy.deepcopy(original, _blanks(original))
            mine, its = list(_tensors(original)), list(_tensors(twin))
            if _storages(mine).keys() & _storages(its).keys():
                raise OriginalFailed("a deep copy of the original shares memory with it: there is no reference")
            if not all(torch.equal(one, other) for one, other in zip(mine, its, strict=True)):
                raise OriginalFailed("a deep copy of the original differs from it: there is no reference")
        return twin

    def replace(self, model: nn.Module) -> Handle:
        """Replace ``model`` and count. Raises ``Disagreement`` where too few or too many layers were replaced."""
        SHARED.look()  # building the original has imported its modules
        before = _parts(model)
        with torch.enable_grad():
            handle = self.replacer(model)
            if not torch.is_grad_enabled():
                raise Disagreement("replacing turns gradients off for whoever comes next")
        expected = self.case.expected(self.example)
        self.evidence.replaced += len(handle.replaced)
        self.evidence.expected += expected
        if len(handle.replaced) != expected:
            reasons = "; ".join(sorted({str(one.reason) for one in handle.left})) or "no reason given"
            raise Disagreement(f"{len(handle.replaced)} of {expected} layers were replaced ({reasons})")
        if self.case.layered and handle.model is model:
            _replaced_indeed(handle, before)
        if fused_states(handle.model):
            self._fused.add(handle.model)
        return handle

    @cached_property
    def replaced(self) -> Handle:
        return self.replace(self.copy())

    def run_replaced(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        """Outputs of a replaced model, with proof that its fused layers computed them, if it has had any."""
        if model in self._fused and not fused_states(model):
            raise Disagreement("the layers that were replaced are the original's again, and nobody has reverted them")
        with fused_path(model):
            return self.case.run(model, inputs)


@contextlib.contextmanager
def fused_path(model: nn.Module) -> Iterator[None]:
    """Raise ``Disagreement`` unless every fused layer of ``model`` runs inside, and each time by its fused path."""
    before = [_calls(state) for state in fused_states(model)]
    yield
    after = [_calls(state) for state in fused_states(model)]
    seen = zip(fused_states(model), before, after, strict=True)
    idle = [state for state, (ran, fell), (runs, falls) in seen if runs == ran or falls > fell]
    if idle:
        reasons = "; ".join(sorted({reason for state in idle for reason in state.fallbacks})) or "never called"
        raise Disagreement(f"the fused path did not run in {len(idle)} layers ({reasons})")


def _calls(state: Any) -> tuple[int, int]:
    """How often the fused path ran, and how often the original's own code instead. One attention of a diffusion model,
    named before the reason, may run so while the rest is fused."""
    return state.calls, sum(count for reason, count in state.fallbacks.items() if not reason.startswith("attention: "))


def fused_states(model: nn.Module) -> list[Any]:
    """The state of every fused layer in ``model``; layers of other people's replacements have none."""
    return [module.fused for module in model.modules() if hasattr(type(module), "_fused_policy")]


def graphs_of(model: nn.Module) -> list[Any]:
    """What in a replaced model captures calls as graphs and replays them."""
    return [graph for state in fused_states(model) for graph in getattr(state, "graphs", {}).values()]


def sequence_first(model: nn.Module) -> bool:
    """Whether the fused layers of ``model`` are handed tokens first and batch second."""
    return any(state.policy.call.sequence_first for state in fused_states(model))


def storages(model: nn.Module) -> dict[int, int]:
    """Addresses and sizes in bytes of the memory that the parameters and buffers of ``model`` lie in; empty ones have none."""
    return _storages(_tensors(model))


Parts = dict[str, tuple[int, type[nn.Module], bool]]
"""Modules by path: which each is, of what class, and whether it has a forward of its own."""


def _parts(model: nn.Module) -> Parts:
    return {path: (id(module), type(module), "forward" in vars(module)) for path, module in model.named_modules()}


def _replaced_indeed(handle: Handle, before: Parts) -> None:
    """Raise where a layer counts as replaced, and all of its parts are as ``before``."""
    after = _parts(handle.model)
    for one in handle.replaced:
        if one.path and _inside(one.path, before) == _inside(one.path, after):
            raise Disagreement(f"{one.path} counts as replaced, and is the {after[one.path][1].__name__} that it was")


def _inside(layer: str, parts: Parts) -> Parts:
    return {path: part for path, part in parts.items() if f"{path}.".startswith(f"{layer}.")}


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    held = [tensor.untyped_storage() for tensor in tensors if tensor.numel()]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def _blanks(model: nn.Module) -> dict[int, Any]:
    """For ``deepcopy``, as what it has copied by then: the empty dictionaries of ``model``, a dozen a module for hooks, which
    take it half of its time."""
    held = [one for module in model.modules() for one in vars(module).values()]
    return {id(one): type(one)() for one in held if type(one) in (dict, OrderedDict) and not one}


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _known(values: dict[str, Value], example: Example) -> dict[str, Value]:
    return {name: value for name, value in values.items() if name in example.values}
