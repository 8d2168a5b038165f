"""Policies that misread one thing: replacements with one known fault, for tests of what the harness makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from cases import CASES
from harness.case import Case
from harness.check import check_property
from harness.profiles import Profile
from harness.properties import BY_NAME
from policies.anatomy import (
    Activation,
    ActivationKind,
    Causality,
    FusedQKV,
    LayerAnatomy,
    Linear,
    QKVLayout,
    RotaryStyle,
    SplitQKV,
)
from policies.base import AnatomyPolicy
from policies.fused import attention as attention_module
from reports.record import Failure

FEW = Profile("few", 40)

Edit = Callable[[LayerAnatomy], LayerAnatomy]


@dataclass(frozen=True)
class Mutant:
    """``edit`` misreads an anatomy, or gives it back itself where there is nothing to misread, as in all layers of the cases in
    ``unfit``. ``stages`` are the names, inside the layer, at which the fault shows first."""

    name: str
    edit: Edit
    stages: Callable[[LayerAnatomy], set[str]]
    unfit: tuple[str, ...] = ()


@contextlib.contextmanager
def misread(edit: Edit) -> Iterator[None]:
    """Every policy reads its layers so while the context is open."""
    honest = AnatomyPolicy.__init__

    def init(self: Any, client_module: Any, inference: bool = True) -> None:
        honest(self, client_module, inference)
        self.anatomy = edit(self.anatomy)

    with mock.patch.object(AnatomyPolicy, "__init__", init):
        yield


@contextlib.contextmanager
def mask_ignored() -> Iterator[None]:
    """Attention takes no notice of the mask that it is given."""
    with mock.patch.object(attention_module, "resolve", return_value=(None, False)):
        yield


def _change(anatomy: LayerAnatomy, **fields: Any) -> LayerAnatomy:
    return dataclasses.replace(anatomy, **fields)


def _attention(anatomy: LayerAnatomy, **fields: Any) -> LayerAnatomy:
    return _change(anatomy, attention=dataclasses.replace(anatomy.attention, **fields))


def _mlp(anatomy: LayerAnatomy, **fields: Any) -> LayerAnatomy:
    return _change(anatomy, mlp=dataclasses.replace(anatomy.mlp, **fields))


def _eps(field: str) -> Edit:
    def edit(anatomy: LayerAnatomy) -> LayerAnatomy:
        norm = getattr(anatomy, field)
        return anatomy if norm is None else _change(anatomy, **{field: dataclasses.replace(norm, eps=norm.eps + 0.3)})

    return edit


def _no_norm_bias(anatomy: LayerAnatomy) -> LayerAnatomy:
    norm = anatomy.attention_norm
    return anatomy if norm.bias is None else _change(anatomy, attention_norm=dataclasses.replace(norm, bias=None))


def _without_bias(linear: Linear) -> Linear:
    return linear if linear.bias is None else dataclasses.replace(linear, bias=None)


def _no_out_bias(anatomy: LayerAnatomy) -> LayerAnatomy:
    out = _without_bias(anatomy.attention.out)
    return anatomy if out is anatomy.attention.out else _attention(anatomy, out=out)


def _no_down_bias(anatomy: LayerAnatomy) -> LayerAnatomy:
    down = _without_bias(anatomy.mlp.down)
    return anatomy if down is anatomy.mlp.down else _mlp(anatomy, down=down)


def _no_up_bias(anatomy: LayerAnatomy) -> LayerAnatomy:
    up = anatomy.mlp.up
    return anatomy if up is None or up.bias is None else _mlp(anatomy, up=_without_bias(up))


def _keys_for_values(anatomy: LayerAnatomy) -> LayerAnatomy:
    qkv = anatomy.attention.qkv
    if not isinstance(qkv, SplitQKV):
        return anatomy
    return _attention(anatomy, qkv=SplitQKV(query=qkv.query, key=qkv.value, value=qkv.key))


def _other_layout(anatomy: LayerAnatomy) -> LayerAnatomy:
    qkv = anatomy.attention.qkv
    if not isinstance(qkv, FusedQKV) or anatomy.attention.kv_heads == 1:
        return anatomy
    other = {QKVLayout.BLOCKED: QKVLayout.INTERLEAVED, QKVLayout.INTERLEAVED: QKVLayout.BLOCKED}
    return _attention(anatomy, qkv=dataclasses.replace(qkv, layout=other[qkv.layout]))


def _other_rotary(anatomy: LayerAnatomy) -> LayerAnatomy:
    rotary = anatomy.attention.rotary
    if rotary is None or rotary.size is None or rotary.size < 4:
        return anatomy
    other = {RotaryStyle.HALF: RotaryStyle.EVERY_TWO, RotaryStyle.EVERY_TWO: RotaryStyle.HALF}
    return _attention(anatomy, rotary=dataclasses.replace(rotary, style=other[rotary.style]))


def _not_causal(anatomy: LayerAnatomy) -> LayerAnatomy:
    if anatomy.attention.causality is Causality.NEVER:
        return anatomy
    return _attention(anatomy, causality=Causality.NEVER)


def _other_activation(anatomy: LayerAnatomy) -> LayerAnatomy:
    activation = anatomy.mlp.activation
    kind = ActivationKind.RELU if activation.kind is not ActivationKind.RELU else ActivationKind.GELU
    return _mlp(anatomy, activation=Activation(kind=kind, function=activation.function, name=activation.name))


def _gate_for_up(anatomy: LayerAnatomy) -> LayerAnatomy:
    mlp = anatomy.mlp
    return anatomy if mlp.gate is None else _mlp(anatomy, gate=mlp.up, up=mlp.gate)


def _norms_swapped(anatomy: LayerAnatomy) -> LayerAnatomy:
    """The other norm's parameters under each norm's name."""
    first, second = anatomy.attention_norm, anatomy.mlp_norm
    if second is None or first.weight is None:
        return anatomy
    return _change(
        anatomy,
        attention_norm=dataclasses.replace(first, weight=second.weight, bias=second.bias),
        mlp_norm=dataclasses.replace(second, weight=first.weight, bias=first.bias),
    )


def _residual_from_norm(anatomy: LayerAnatomy) -> LayerAnatomy:
    if anatomy.parallel or anatomy.norm_position.value != "pre-norm":
        return anatomy
    return _change(anatomy, residual_from_norm=not anatomy.residual_from_norm)


def _context(anatomy: LayerAnatomy) -> set[str]:
    return {f"{anatomy.attention.out.name}:input"}


def _inner(anatomy: LayerAnatomy) -> set[str]:
    return {f"{anatomy.mlp.down.name}:input"}


def _norm(field: str) -> Callable[[LayerAnatomy], set[str]]:
    return lambda anatomy: {getattr(anatomy, field).name}


def _scaled(factor: float) -> Edit:
    return lambda anatomy: _attention(anatomy, scale=anatomy.attention.scale * factor)


MUTANTS = (
    Mutant("eps of the attention's norm", _eps("attention_norm"), _norm("attention_norm")),
    Mutant("eps of the MLP's norm", _eps("mlp_norm"), _norm("mlp_norm")),
    Mutant("norm bias dropped", _no_norm_bias, _norm("attention_norm"), ("llama",)),
    Mutant("attention output bias dropped", _no_out_bias, lambda one: {one.attention.out.name}),
    Mutant("MLP output bias dropped", _no_down_bias, lambda one: {one.mlp.down.name}),
    Mutant("MLP input bias dropped", _no_up_bias, lambda one: {one.mlp.up.name} if one.mlp.up else set()),
    Mutant("keys for values", _keys_for_values, _context, ("gpt2", "gpt_neox")),
    Mutant("QKV layout", _other_layout, _context, ("bert", "llama")),
    Mutant("attention scale", _scaled(2.0), _context),
    Mutant("rotary pairs", _other_rotary, _context, ("gpt2", "bert")),
    Mutant("causality", _not_causal, _context),
    Mutant("activation", _other_activation, _inner),
    Mutant("gate for up", _gate_for_up, _inner, ("gpt2", "bert", "gpt_neox")),
    Mutant("norms swapped", _norms_swapped, _norm("attention_norm")),
    Mutant(
        "residual after the norm",
        _residual_from_norm,
        lambda one: {f"{one.mlp_norm.name}:input"} if one.mlp_norm else set(),
        ("bert",),
    ),
)


def case_named(name: str) -> Case:
    return next(entry for entry in CASES if entry.name == name).load()


def mutant(name: str) -> Mutant:
    return next(one for one in MUTANTS if one.name == name)


def failure_of(case: Case, fault: Mutant, prop: str = "model equality") -> Failure:
    with misread(fault.edit):
        failure = check_property(BY_NAME[prop], case, profile=FEW, seed=1, policy="").verdict.failure
    assert failure is not None
    return failure
