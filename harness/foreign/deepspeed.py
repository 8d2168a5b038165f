"""DeepSpeed's policies for transformer layers, judged one by one."""

from __future__ import annotations

import inspect
import time
from pkgutil import resolve_name
from typing import Any

import msgspec
from torch import nn

from policies.anatomy import NormPosition
from policies.foreign import deepspeed as adapter
from policies.foreign.deepspeed_names import Loaded, load
from policies.foreign.facts import FACTS, take_apart
from policies.replace import replace_module
from policies.structure import Structure

from ..case import Case, Example
from ..registry import CaseEntry
from ..search import quiet
from ..trial import Replacer
from . import scripts
from .readings import Fault, Judge, Proof
from .report import Defect, Judged
from .rows import Row
from .subject import subject
from .words import example_words, fault_words, names_words, verdict_words

_FLAGS = {"preln": "pre_attn_norm", "megatron_v2": "is_megatron_v2"}
"""Constructor arguments of policies, and the attribute each should decide, where it has another name."""


def judge(row: Row, entries: tuple[CaseEntry, ...], *, examples: int, seed: int) -> tuple[Judged, dict[str, str]]:
    """The verdict on one policy, and its scripts by file name."""
    started = time.perf_counter()
    with quiet():
        judging = _Judging(row, subject(row, entries))
        found = judging.all(examples, seed)
    return msgspec.structs.replace(found, seconds=round(time.perf_counter() - started, 1)), judging.scripts


class _Judging:
    """One policy under judgement."""

    def __init__(self, row: Row, case: Case) -> None:
        from deepspeed.module_inject import replace_policy

        self.row, self.case = row, case
        self.policy_class: Any = getattr(replace_policy, row.policy)
        self.own_policy: Any = resolve_name(row.own)
        self.refusals: set[str] = set()
        self.defects: list[Defect] = []
        self.scripts: dict[str, str] = {}

    def all(self, examples: int, seed: int) -> Judged:
        simplest = self.case.simplest
        layer, own = self._layer(simplest)
        matches = self._matches()
        said = adapter.ask(self.policy_class, layer, own, self.row.dress)
        container = self._container(said.container)
        flags = self._flags()
        names = self._names(said)
        proof = Judge(self.case, self._replacer, adapter.facts_of).prove(examples=examples, seed=seed)
        for fault in proof.faults:
            self._fault(fault)
        return Judged(
            policy=self.row.policy,
            layer=self.row.live.partition(":")[2] if self.row.live else f"judged on {self.row.stand_in}",
            cells={
                "matches": matches,
                "constructs": container,
                "extracts": _extracts(proof),
                "checkpoint names": names,
                "flags": flags,
            },
            verdict=verdict_words(self.defects, proof, usable=matches == "yes" and container == "yes"),
            proven=proof.examples,
            supplied=tuple(sorted(proof.ours)),
            from_us=_from_us(own, said.parts),
            refused="; ".join(sorted(self.refusals)[:1]) + (f" and {len(self.refusals) - 1} more" if self.refusals else ""),
            defects=tuple(self.defects),
        )

    def _layer(self, example: Example) -> tuple[nn.Module, Any]:
        """The first layer of the example's model, and our reading of it."""
        model = self.case.build(example)
        layer = next(one for one in model.modules() if self.own_policy.matches(one))
        return layer, self.own_policy.read(Structure(layer))

    def _replacer(self, ours: frozenset[str]) -> Replacer:
        reading = adapter.reading(self.policy_class, self.own_policy, ours, self.row.dress, self.refusals)
        return lambda model: replace_module(model, [reading])

    def _matches(self) -> str:
        """Whether the policy knows the layer's class once it has been made for None, as DeepSpeed's injection does."""
        self.policy_class(None, inference=True)
        known = self.policy_class._orig_layer_class
        if not known:
            self._add("matches", f"matches nothing: it looks for {self.row.looks_for}", silent=True)
            return "nothing"
        if self.row.live is None or resolve_name(self.row.live) not in (known if isinstance(known, list) else [known]):
            self._add("matches", f"matches {known}, which is not the live class", silent=True)
            return "another class"
        return "yes"

    def _container(self, container: Any) -> str:
        if container is None:
            what = "DeepSpeed has no container for it: the next step of its injection is an AttributeError on None"
        elif isinstance(container, Exception):
            what = f"its container cannot be made: {type(container).__name__}: {' '.join(str(container).split())}"
        else:
            return "yes"
        self._add("container", what, silent=False)
        return "policy yes, container no"

    def _flags(self) -> str:
        """Whether what the constructor takes arrives."""
        parameters = list(inspect.signature(self.policy_class.__init__).parameters)[3:]
        for name in parameters:
            attribute = _FLAGS.get(name, name)
            found = [getattr(self.policy_class(None, inference=True, **{name: value}), attribute) for value in (False, True)]
            if found != [False, True]:
                what = f"takes {name} and drops it: {attribute} stays {found[0]}"
                self._add("flags", what, silent=True, extra={"flag": name, "attribute": attribute})
                return f"{name} dropped"
        return f"{', '.join(parameters)} arrive" if parameters else "takes none"

    def _names(self, said: adapter.Said) -> str:
        container = adapter.container_class(self.policy_class)
        if not hasattr(container, "load_params"):
            return "has none"
        client: Any = said.policy.client_module
        found: Loaded = load(container, said.policy, client.state_dict(), said.parts)
        if not found.wrong:
            return f"all {len(client.state_dict())} right"
        extra = {"module": self.policy_class.__module__}
        self._add("names", names_words(found), silent=not found.error, extra=extra)
        return "crash" if found.error else "wrong"

    def _fault(self, fault: Fault) -> None:
        crash = "raises" in fault.message and fault.error is None
        key = fault.message.split()[0] if crash else (fault.facts or ("reading",))[0]
        layer, own = self._layer(fault.example)
        said: dict[str, Any] = {}
        if not crash:
            said = adapter.ask(self.policy_class, layer, own, self.row.dress).parts
        what = fault_words(fault, said, take_apart(own))
        self._add(key, what, silent=not crash and key not in ("heads", "grouped heads"), example=fault.example, error=fault.error)

    def _add(
        self,
        key: str,
        what: str,
        *,
        silent: bool,
        example: Example | None = None,
        error: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        at = example or self.case.simplest
        name = f"{self.row.policy}-{key.removesuffix('()').replace(' ', '-')}"
        text = scripts.write(self.row, key, f"{self.row.policy}: {what}", self.case, at, self._paths(at) | (extra or {}))
        if text is not None:
            self.scripts[f"{name}.py"] = text
        self.defects.append(
            Defect(
                id=name,
                what=what,
                silent=silent,
                example=example_words(at, self.case.axes) if example else "",
                error=error,
                script=f"{name}.py" if text is not None else None,
                shown=scripts.shows(text),
            )
        )

    def _paths(self, example: Example) -> dict[str, Any]:
        """Where things are in the layer, for scripts."""
        layer, own = self._layer(example)
        attention = next((name for name, one in layer.named_modules() if one is own.attention.module), "")
        second = own.mlp_norm if own.norm_position is NormPosition.PRE else own.attention_norm
        return {
            "layer_class": type(layer).__name__,
            "activation": own.mlp.activation.name or "activation_func",
            "attention": attention,
            "attention_norm": own.attention_norm.name,
            "between": (second or own.attention_norm).name,
        }


def _extracts(proof: Proof) -> str:
    crashed = [fault for fault in proof.faults if "raises" in fault.message and fault.error is None]
    if not crashed:
        return "yes"
    method = crashed[0].message.split()[0]
    return f"{method} crashes" if crashed[0].axis is None else f"{method} crashes at {crashed[0].axis}={crashed[0].values[0]}"


def _from_us(own: Any, said: dict[str, Any]) -> str:
    """What no tuple and no flag of the policy says, and this layer has."""
    found = ["where the mask is causal", "the layer's number in the cache"] if own.attention.cache_index is not None else []
    if own.attention.rotary is not None:
        found.append(f"rotary positions ({own.attention.rotary.style.value})")
    if own.attention.alibi:
        found.append("ALiBi")
    if own.residual_from_norm:
        found.append("a residual taken after the norm")
    found += [fact for fact, names in FACTS.items() if fact != "whole layer" and not any(name in said for name in names)]
    return ", ".join(found)
