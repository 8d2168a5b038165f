"""A case nobody wrote: drawn from a layer's model and configuration classes, and tried out before it is believed.

Which values an architecture accepts is found by running it: each value of each axis alone, then random examples. A
value that the original does not survive is dropped, values that do not go together are kept apart; both are reported.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from policies.swap import qualified_name

from ..case import Axis, Example, Value
from ..exact import exact_mode
from ..hf import inputs as hf
from ..hf.rotary import ROPE
from ..hf.unusual import NORM_EPS, WEIGHTS
from ..nested import cast
from ..properties.sizes import DEEP, DEEPEST
from ..search import quiet
from .derivation import Derivation
from .derived import CROSSING, DECODER, DerivedCase, config_values
from .fields import FULL, SLIDING, declared, extra_values, fields_of_roles, idle_dropouts, role_of
from .models import NotDerivable, layer_class, models_with

TRIED = 60
"""Random examples that the original runs before the case is used."""

_BY_ROLE: dict[str, Axis] = {
    "heads": hf.HEADS,
    "inner": hf.INNER,
    "layers": hf.LAYERS,
    "eps": hf.EPS,
    "rope": ROPE,
    "window": Axis("window", (None, 2)),
}


def derive(layer: str) -> Derivation:
    """A case for the layer class ``module:Class``. Raises ``NotDerivable``."""
    cls = layer_class(layer)
    models = models_with(cls, lambda one: one(**config_values(_first_guess(one, layer))))
    guesses = [_of_model(model, layer) for model in models]
    eager = [_eager(one) for one in guesses]
    guess = _first_that_runs(guesses + eager + [_windowed(one) for one in guesses + eager])
    guess = replace(guess, causal=_is_causal(guess, decoder=False), causal_if_decoder=_is_causal(guess, decoder=True))
    guess = replace(guess, cached=_is_cached(guess))
    guess = _tried_alone(guess)
    guess = replace(guess, layers_of=_layer_counts(guess))
    return _tried_together(guess)


_TOKEN_AXES = ("tokens", "padding", "mask")


def _first_guess(config_class: type, layer: str) -> Derivation:
    fields = fields_of_roles(config_class)
    default = _defaults(config_class)
    if "window" in fields and {FULL, SLIDING}.issuperset(default.get("layer_types") or ("",)):
        fields["kinds"] = ("layer_types",)
    axes: list[Axis] = [hf.IMPLEMENTATION]
    if "kv_heads" in fields:
        axes += [hf.KV_HEADS, hf.GROUP]
    elif "heads" in fields:
        axes.append(hf.HEADS)
    axes.append(hf.HEAD_SIZES)
    if "head_size" in fields:
        axes.append(Axis("hidden_factor", (0, 1, 2, 3), claimed=False, large=(0, 32, 50), largest=(2100, 4100)))
    axes += [axis for role, axis in _BY_ROLE.items() if role in fields and role != "heads"]
    if "rope" in fields and "partial_rotary_factor" in _source(layer):
        axes.append(Axis("rotary_share", (1.0, 0.5, 0.25), claimed=False))
    if "activation" in fields:
        usual = default.get(fields["activation"][0])
        rest = (one for one in hf.ACTIVATIONS.values if one != usual)
        axes.append(Axis("activation", (usual, *rest) if isinstance(usual, str) else hf.ACTIVATIONS.values))
    axes += [hf.BATCH, hf.TOKENS, hf.PADDING, hf.MASK, WEIGHTS, NORM_EPS]
    extras, undrawn = _extras(config_class, default, {name for names in fields.values() for name in names})
    if any(one.name == CROSSING for one in extras):
        axes.append(hf.SOURCE_TOKENS)
    return Derivation(
        layer=layer,
        model="",
        config=qualified_name(config_class),
        fields=fields,
        axes=(*axes, *extras),
        dropouts=idle_dropouts(declared(config_class), default),
        undrawn=undrawn,
    )


def _source(layer: str) -> str:
    return inspect.getsource(import_module(layer.partition(":")[0]))


def _defaults(config_class: Any) -> dict[str, Any]:
    with quiet():
        return dict(config_class().to_dict())


def _extras(config_class: type, default: dict[str, Any], known: set[str]) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """Axes of the fields without a role, and the fields that stay at their default, whose meaning nobody knows."""
    axes, undrawn = [], []
    for name in declared(config_class):
        if name in known or role_of(name) is not None:
            continue
        values = extra_values(name, default.get(name))
        if values is None:
            undrawn.append(f"{name} stays {default.get(name)!r}"[:100])
        elif values:
            axes.append(Axis(f"config {name}", values))
    return tuple(axes), tuple(undrawn)


def runs(derivation: Derivation, example: Example) -> str | None:
    """Why the original does not run this example, or None. Judged as it will be, in exact mode."""
    case = DerivedCase(derivation)
    try:
        with quiet(), exact_mode():
            model = case.build(example).double()
            inputs = case.inputs(example)
            outputs = case.run(model, cast(inputs, torch.float64))
    except Exception as problem:
        return f"{type(problem).__name__}: {' '.join(str(problem).split())[:100]}"
    ids = inputs.kwargs.get("input_ids")
    for name, output in outputs.items():
        if ids is not None and output.shape[:2] != ids.shape:
            return f"{name} is {tuple(output.shape)} for {tuple(ids.shape)} tokens"
        seen = output if inputs.valid is None else output[inputs.valid]
        if not bool(torch.isfinite(seen).all()):
            return f"{name} is not finite"
    return None


def _of_model(model: Any, layer: str) -> Derivation:
    guess = replace(_first_guess(model.config_class, layer), model=qualified_name(model))
    if model.main_input_name != "pixel_values":
        told = "position_ids" in inspect.signature(model.forward).parameters
        return replace(guess, axes=(*guess.axes, hf.ROW_POSITIONS)) if told else guess
    return replace(guess, image=True, axes=tuple(one for one in guess.axes if one.name not in _TOKEN_AXES))


def _eager(guess: Derivation) -> Derivation:
    """For models without an sdpa variant."""
    axes = tuple(hf.EAGER_ONLY if one.name == "attention" else one for one in guess.axes)
    return replace(guess, axes=axes, sdpa=False)


def _windowed(guess: Derivation) -> Derivation:
    """For models that insist on a window."""
    axes = tuple(Axis("window", (4, 2)) if one.name == "window" else one for one in guess.axes)
    return replace(guess, axes=axes)


def _first_that_runs(guesses: list[Derivation]) -> Derivation:
    problems = []
    for guess in guesses:
        problem = runs(guess, DerivedCase(guess).simplest)
        if problem is None:
            return guess
        problems.append(f"the simplest {guess.model.partition(':')[2]} does not run: {problem}")
    telling = [one for one in problems if "attention implementation" not in one] or problems
    raise NotDerivable(f"{telling[0]}; write a Case beside the policy")


def _as_decoder(example: Example) -> Example:
    return example.with_value(DECODER, True) if DECODER in example.values else example


def _is_causal(derivation: Derivation, *, decoder: bool) -> bool:
    """Whether an earlier position's output is blind to a later token."""
    case = DerivedCase(derivation)
    example = _as_decoder(case.simplest) if decoder else case.simplest
    if derivation.image or runs(derivation, example) is not None:
        return False
    with quiet(), torch.no_grad():
        model, inputs = case.build(example), case.inputs(example)
        before = case.run(model, inputs)["last_hidden_state"]
        inputs.kwargs["input_ids"][:, -1] = (inputs.kwargs["input_ids"][:, -1] + 1) % hf.VOCABULARY
        after = case.run(model, inputs)["last_hidden_state"]
    return bool(torch.equal(before[:, 0], after[:, 0])) and not torch.equal(before, after)


def _is_cached(derivation: Derivation) -> bool:
    """Whether the model, as a decoder, hands back a key/value cache that grows with the tokens."""
    if not (derivation.causal or derivation.causal_if_decoder):
        return False
    case = DerivedCase(derivation)
    example = _as_decoder(case.simplest)
    kwargs = {**case.inputs(example).kwargs, "use_cache": True}
    try:
        with quiet(), torch.no_grad():
            cache = getattr(case.build(example)(**kwargs), "past_key_values", None)
            return cache is not None and cache.get_seq_length() == example["tokens"]
    except Exception:
        return False


def _tried_alone(derivation: Derivation) -> Derivation:
    """Without the values that the original does not survive even alone."""
    case = DerivedCase(derivation)
    axes, dropped = [], []
    for axis in derivation.axes:
        kept: list[Value] = [axis.simplest]
        for value in axis.values[1:]:
            problem = runs(derivation, case.simplest.with_value(axis.name, value))
            if problem is None:
                kept.append(value)
            else:
                dropped.append(f"{axis.name}={value}: {problem}")
        if len(kept) > 1:
            axes.append(replace(axis, values=tuple(kept)))
        else:
            axes.append(replace(axis, values=tuple(kept), claimed=False))
    return replace(derivation, axes=tuple(axes), dropped=tuple(dropped))


def _layer_counts(derivation: Derivation) -> dict[int, int]:
    """Layers in the model, for each value of the layers axis, and for as many as a property asks for where it takes them."""
    case = DerivedCase(derivation)
    cls = layer_class(derivation.layer)
    axis = next((one for one in derivation.axes if one.name == "layers"), Axis("layers", (1,)))
    counts = {}
    for value in (*axis.values, DEEP, DEEPEST):
        try:
            with quiet():
                model = case.build(case.simplest.with_value("layers", value))
        except Exception:
            if value in axis.values:
                raise
        else:
            counts[int(str(value))] = sum(type(one) is cls for one in model.modules())
    return counts


def _tried_together(derivation: Derivation) -> Derivation:
    """With pairs of values kept apart that the original does not survive together."""
    chooser = random.Random(0)
    for number in range(TRIED):
        case = DerivedCase(derivation)
        values = {axis.name: chooser.choice(axis.values) for axis in derivation.axes}
        example = case.apart(Example(values, number))
        problem = runs(derivation, example)
        if problem is None:
            continue
        guilty = _smallest(case, example, lambda one: runs(derivation, one) is not None)  # noqa: B023
        off = tuple((axis.name, guilty[axis.name]) for axis in derivation.axes if guilty[axis.name] != axis.simplest)
        if not off:
            raise NotDerivable(f"the original fails for no reason that an axis explains ({problem})")
        words = " with ".join(f"{name}={value}" for name, value in off)
        derivation = replace(
            derivation, kept_apart=(*derivation.kept_apart, off), dropped=(*derivation.dropped, f"{words}: {problem}")
        )
    return derivation


def _smallest(case: DerivedCase, example: Example, fails: Callable[[Example], bool]) -> Example:
    """``example`` with every axis back at its simplest value that can be while it still fails."""
    for axis in case.axes:
        simpler = example.with_value(axis.name, axis.simplest)
        if example[axis.name] != axis.simplest and fails(simpler):
            example = simpler
    return example
