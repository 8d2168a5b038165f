"""A small Llama case for tests of properties, and replacers that are wrong in one way each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaMLP

from harness.case import Axis, Example
from harness.hf.case import TransformersCase
from policies import replace_module
from policies.calls import CACHE_NAMES
from policies.replace import Replaced, Replacement
from policies.swap import Swap

Forward = Callable[..., Any]


class TinyLlama(TransformersCase):
    name = "tiny"
    title = "Small Llama for tests"
    configuration = "transformers:LlamaConfig"
    model = "transformers:LlamaModel"
    layer = "transformers.models.llama.modeling_llama:LlamaDecoderLayer"
    axes = (
        Axis("attention", ("sdpa", "eager")),
        Axis("kv_heads", (1, 2)),
        Axis("layers", (1, 2)),
        Axis("batch", (1, 2, 3), large=(9, 17), largest=(65,)),
        Axis("tokens", (3, 1, 5)),
        Axis("padding", ("none", "right", "left")),
        Axis("mask", ("none", "2d", "4d float")),
    )

    def config_kwargs(self, example: Example) -> dict[str, Any]:
        return {
            "hidden_size": 12,
            "head_dim": 4,
            "num_attention_heads": 2 * example["kv_heads"],
            "num_key_value_heads": example["kv_heads"],
            "intermediate_size": 7,
            "num_hidden_layers": example["layers"],
            "vocab_size": 37,
            "max_position_embeddings": 24,
            "bos_token_id": None,
            "eos_token_id": None,
        }


class Worst:
    """What one wrong replacer remembers between the models that it is given."""

    def __init__(self) -> None:
        self.models: set[int] = set()
        self.outputs: list[Any] = []
        self.masks: dict[int, Any] = {}


class Undoing(Swap):
    """What is done when a replacement is reverted."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self.undo = undo

    def install(self) -> None: ...

    def revert(self) -> None:
        self.undo()


def around(change: Callable[..., Any]) -> Callable[[nn.Module], Replacement]:
    """A replacer whose layers answer ``change(own forward, call's state, *args, **kwargs)``."""
    shared = Worst()

    def replacer(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        undone = []
        for one in handle.replaced:
            layer: Any = model.get_submodule(one.path)
            state = {"model": id(model), "shared": shared, "layer": layer}
            layer._fused_forward = functools.partial(_changed, change, layer._fused_forward, state)
            undone.append(Undoing(functools.partial(vars(layer).pop, "_fused_forward", None)))
        return dataclasses.replace(handle, swaps=(*undone, *handle.swaps))

    return replacer


def _changed(change: Callable[..., Any], own: Callable[..., Any], state: dict[str, Any], args: Any, kwargs: Any) -> Any:
    """In the place of what a fused layer's forward calls, where nobody takes it for somebody else's forward."""
    return change(lambda *args, **kwargs: own(args, kwargs), state, *args, **kwargs)


def edited(edit: Callable[[nn.Module], None]) -> Callable[[nn.Module], Replacement]:
    """A replacer that does something to each layer once it is replaced."""

    def replacer(model: nn.Module) -> Replacement:
        handle = replace_module(model)
        for one in handle.replaced:
            edit(model.get_submodule(one.path))
        return handle

    return replacer


def unchanged(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs)


def slightly_off(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs) * (1 + 1e-6)


def names_only(own: Forward, state: dict[str, Any], hidden_states: Any, **kwargs: Any) -> Any:
    return own(hidden_states, **kwargs)


def cache_of(kwargs: dict[str, Any]) -> Any:
    """The cache that a layer was called with, by whatever name this release of transformers hands it down."""
    return next((kwargs[name] for name in CACHE_NAMES if name in kwargs), None)


def spoils_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output, cache = own(*args, **kwargs), cache_of(kwargs)
    if cache is not None:
        for layer in cache.layers:
            layer.keys = layer.keys * 1.001
    return output


def masks_by_the_last_row(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Behind a cache, takes a mask for padding, which the last query's row has, and for causal."""
    mask = kwargs["attention_mask"]
    if mask is not None and 1 < mask.shape[-2] < mask.shape[-1]:
        queries, keys = mask.shape[-2:]
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        lowest = False if mask.dtype is torch.bool else torch.finfo(mask.dtype).min
        kwargs["attention_mask"] = mask[..., -1:, :].expand_as(mask).masked_fill(hidden, lowest)
    return own(*args, **kwargs)


def no_cache_to_give_back(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Takes a cache that is not wanted back for none."""
    if kwargs.get("use_cache") is False:
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    return own(*args, **kwargs)


def own_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Keeps keys on the module, whatever the caller has done to the cache or whoever's it is."""
    cache, kept = cache_of(kwargs), state.get("keys")
    index = state["layer"].self_attn.layer_idx
    if cache is not None and kept is not None and len(cache.layers) > index:
        keys = cache.layers[index].keys
        if keys is not None and keys.dim() == 4 and keys.shape[-2] <= kept.shape[-2] and len(keys) <= len(kept):
            cache.layers[index].keys = kept[: len(keys), :, : keys.shape[-2]].clone()
    output = own(*args, **kwargs)
    if cache is not None:
        state["keys"] = cache.layers[index].keys.clone()
    return output


def dynamic_cache_only(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if type(cache_of(kwargs)).__name__ == "StaticCache":
        raise TypeError("only growing caches are known")
    return own(*args, **kwargs)


def knows_its_caches(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    cache = cache_of(kwargs)
    if cache is not None and not type(cache).__module__.startswith("transformers."):
        raise TypeError("only the library's caches are known")
    return own(*args, **kwargs)


def knows_its_layers(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Appends to what any layer of the library's cache holds, and asks none of them."""
    cache = cache_of(kwargs)
    if type(cache) is not DynamicCache:
        return own(*args, **kwargs)
    classes = [type(layer) for layer in cache.layers]
    for layer in cache.layers:
        layer.__class__ = DynamicLayer
    output = own(*args, **kwargs)
    for layer, its in zip(cache.layers, classes, strict=False):
        layer.__class__ = its
    return output


def leaks_rows(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output + 1e-6 * output.mean(0, keepdim=True)


def leaks_tokens(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output + 1e-6 * output.mean(1, keepdim=True)


def drifts(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["calls"] = state.get("calls", 0) + 1
    return own(*args, **kwargs) * (1 + 1e-13 * state["calls"])


def keeps_the_last_mask(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What was made of a mask serves until another tensor comes."""
    mask = kwargs["attention_mask"]
    if mask is not None:
        if state.get("mask") is not mask:
            state["mask"], state["made"] = mask, mask.clone()
        kwargs["attention_mask"] = state["made"]
    return own(*args, **kwargs)


def sized_by_first_call(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    if hidden.numel() > state.setdefault("room", hidden.numel()):
        raise RuntimeError("the workspace is too small")
    return own(hidden, *args, **kwargs)


def within_half_precision(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    most = torch.finfo(torch.float16).max
    return own(*args, **kwargs).clamp(-most, most)


def made_finite(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    most = torch.finfo(hidden_states.dtype).max
    return own(hidden_states.clamp(-most, most), *args, **kwargs)


def causal_by_its_corners(
    own: Forward, state: dict[str, Any], hidden_states: Any, attention_mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """Leaves out a mask whose first query sees itself alone and whose last sees all."""
    mask, by_sdpa = attention_mask, state["layer"].self_attn.config._attn_implementation == "sdpa"
    if by_sdpa and getattr(mask, "dtype", None) is torch.bool and not mask[:, :, 0, 1:].any() and mask[:, :, -1].all():
        attention_mask = None
    return own(hidden_states, attention_mask, *args, **kwargs)


def cuts_masks(own: Forward, state: dict[str, Any], hidden_states: Any, attention_mask: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(attention_mask, torch.Tensor) and cache_of(kwargs) is None:
        attention_mask = attention_mask[..., : hidden_states.shape[1]]
    return own(hidden_states, attention_mask, *args, **kwargs)


def bounded_table(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What is behind the end of a table of 2,048 positions is at its last."""
    output = own(*args, **kwargs)
    return torch.cat((output[:, :2048], output[:, 2047:2048].expand_as(output[:, 2048:])), dim=1)


def one_grid(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A block for each head of each row, and rows that no block is left for stay zero."""
    output = own(*args, **kwargs)
    blocks = 65_535 // state["layer"].self_attn.config.num_attention_heads
    return torch.cat((output[:blocks], output[blocks:] * 0))


def four_slots(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """There are four places for what is kept of a layer; the fifth layer takes the last."""
    output = own(*args, **kwargs)
    return output if state["layer"].self_attn.layer_idx < 4 else output.roll(1, dims=-1)


def whole_blocks(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = own(hidden, *args, **kwargs)
    return output if hidden.shape[1] < 32 else output[:, : hidden.shape[1] // 32 * 32]


def whole_rows(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = own(hidden, *args, **kwargs)
    return output if len(hidden) < 8 else output[: len(hidden) // 8 * 8]


def bounded_batch(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = own(hidden, *args, **kwargs)
    return output if len(hidden) <= 64 else torch.cat((output[:64], output[64:] * 0))


def divides_by_length(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    length = hidden_states.norm(dim=-1, keepdim=True)
    return own(hidden_states / length * length, *args, **kwargs)


def steps_by_size(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Goes from row to row by the number of a row's elements, which finds nothing behind one that is there once."""
    output = own(hidden_states, *args, **kwargs)
    return output * 0 if len(hidden_states) > 1 and hidden_states.stride(0) == 0 else output


def whole_storage(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """Reads from where the memory begins, whatever part of it the tensor is."""
    if hidden_states.storage_offset():
        hidden_states = hidden_states.as_strided(hidden_states.shape, hidden_states.stride(), 0)
    return own(hidden_states, *args, **kwargs)


def needs_a_row(own: Forward, state: dict[str, Any], hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    if len(hidden_states) == 0:
        raise RuntimeError("no rows to work on")
    return own(hidden_states, *args, **kwargs)


def keeps_each_output(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    state["shared"].outputs.append(output.detach())
    return output


def keeps_a_mask_of_each_length(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    length = hidden.shape[1]
    state["shared"].masks.setdefault(length, torch.ones(length, length, dtype=torch.bool).tril())
    return own(hidden, *args, **kwargs)


def keeps_the_last_masks(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    output = keeps_a_mask_of_each_length(own, state, hidden, *args, **kwargs)
    masks = state["shared"].masks
    if len(masks) > 128:
        del masks[next(iter(masks))]
    return output


def saves_what_it_was_given(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Written as a function of autograd, whose backward multiplies what was saved as it came."""
    if not torch.is_autocast_enabled("cpu"):
        return own(hidden, *args, **kwargs)
    weight = torch.diag(state["layer"].input_layernorm.weight)
    return own(_Projected.apply(hidden, weight) * 0 + hidden, *args, **kwargs)


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any) -> Any:
        ctx.save_for_backward(weight)
        return nn.functional.linear(hidden, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] @ ctx.saved_tensors[0], None


def keeps_its_cache(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["cache"] = cache_of(kwargs)
    return own(*args, **kwargs)


def deaf_in_steps(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Has a kernel for decoding that calls no module."""
    if hidden.shape[1] > 1 or cache_of(kwargs) is None:
        return own(hidden, *args, **kwargs)
    with without_hooks(state["layer"], "_forward_hooks", "_forward_pre_hooks"):
        return own(hidden, *args, **kwargs)


def deaf_backwards(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    with without_hooks(state["layer"], "_backward_hooks"):
        return own(*args, **kwargs)


@contextlib.contextmanager
def without_hooks(layer: nn.Module, *kinds: str) -> Iterator[None]:
    hooks = [getattr(one, kind) for one in layer.modules() for kind in kinds]
    kept = [dict(one) for one in hooks]
    for one in hooks:
        one.clear()
    try:
        yield
    finally:
        for one, before in zip(hooks, kept, strict=True):
            one.update(before)


def decodes_with_its_first_epsilon(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    norm = state["layer"].input_layernorm
    now = norm.variance_epsilon
    first = state.setdefault("epsilon", now)
    steps = hidden.shape[1] == 1 and cache_of(kwargs) is not None
    norm.variance_epsilon = first if steps else now
    try:
        return own(hidden, *args, **kwargs)
    finally:
        norm.variance_epsilon = now


def hooked(forward: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A change by which an MLP that has hooks inside is run by ``forward(mlp, x)``."""

    def change(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mlp = state["layer"].mlp
        if not any(one._forward_hooks for one in mlp.modules()):
            return own(*args, **kwargs)
        kind = type(mlp)
        mlp.__class__ = type(kind.__name__, (kind,), {"forward": forward})
        try:
            return own(*args, **kwargs)
        finally:
            mlp.__class__ = kind

    return change


def by_rows(mlp: Any, x: Any) -> Any:
    return LlamaMLP.forward(mlp, x.flatten(0, 1)).view(x.shape)


def in_place(mlp: Any, x: Any) -> Any:
    return LlamaMLP.forward(mlp, x).mul_(2) / 2


def unpatching(model: nn.Module) -> Replacement:
    """Puts its own forward where somebody has put one before."""
    for one in model.modules():
        vars(one).pop("forward", None)
    return replace_module(model)


def configured(model: nn.Module) -> Replacement:
    """Leaves a field of its own in the configuration."""
    handle = replace_module(model)
    model.config.fused = True
    return handle


def seeded(model: nn.Module) -> Replacement:
    torch.manual_seed(0)
    return replace_module(model)


def wears_out(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["calls"] = state.get("calls", 0) + 1
    return own(*args, **kwargs) * (1.0 if state["calls"] <= 100 else 1.01)


def sixteen_places(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """Keeps what is decoded in a place for each new token, and begins again when all are taken."""
    decodes = hidden.shape[1] == 1 and cache_of(kwargs) is not None
    state["places"] = state.get("places", 0) + 1 if decodes else 0
    return own(hidden, *args, **kwargs) * (1.0 if state["places"] <= 16 else 1.01)


def begins_and_ends(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Notes that it works, and that it does not any more; whoever finds it at work must be another call inside this one."""
    inside = state.get("works", False)
    state["works"] = True
    output = own(*args, **kwargs)
    state["works"] = False
    return output * 2 if inside else output


def remembers_first_call(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    first = state.setdefault("first", float(hidden.abs().sum()))
    return own(hidden, *args, **kwargs) * (1 + 1e-13 * first)


def counts_models(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    state["shared"].models.add(state["model"])
    return own(*args, **kwargs) * (1 + 1e-6 * (len(state["shared"].models) - 1))


def writes_weights(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        state["layer"].mlp.down_proj.weight.mul_(1 + 1e-6)
    return own(*args, **kwargs)


def reads_new_memory(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    output = own(*args, **kwargs)
    return output * 2 if bool(torch.empty(64).isnan().all()) else output


@contextlib.contextmanager
def put_back(kept: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Each owner has what it had by that name, for a while."""
    now = [(owner, name, getattr(owner, name)) for owner, name, _ in kept]
    for owner, name, value in kept:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in now:
            setattr(owner, name, value)


def keeps_its_implementation(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    config = state["layer"].self_attn.config
    first = state.setdefault("implementation", config._attn_implementation)
    with put_back([(config, "_attn_implementation", first)]):
        return own(*args, **kwargs)


def knows_no_later_bias(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    linears = [part for part in state["layer"].modules() if isinstance(part, nn.Linear)]
    with put_back([(part, "bias", None) for part in state.setdefault("without", [one for one in linears if one.bias is None])]):
        return own(*args, **kwargs)


def reads_weights_alone(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Whatever has a weight is taken for the linear whose weight that is."""
    parts = [(owner, name, one) for owner in state["layer"].modules() for name, one in owner.named_children() if one._modules]
    with put_back([(owner, name, next(one.children())) for owner, name, one in parts if hasattr(one, "weight")]):
        return own(*args, **kwargs)


def reads_what_is_parametrized(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The parameter itself, and not what a parametrization makes of it."""
    lists = [one for one in state["layer"].modules() if isinstance(one, parametrize.ParametrizationList)]
    with put_back([(one, "0", nn.Identity()) for one in lists]):
        return own(*args, **kwargs)


def takes_gains_for_ones(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Looks once whether they are."""
    norm = state["layer"].input_layernorm
    unit = state.setdefault("unit", bool((norm.weight == 1).all()))
    with put_back([(norm, "weight", nn.Parameter(torch.ones_like(norm.weight)))] if unit else []):
        return own(*args, **kwargs)


def decodes_with_its_first_weights(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    if hidden.shape[1] > 1 or cache_of(kwargs) is None:
        return own(hidden, *args, **kwargs)
    linears = [part for part in state["layer"].modules() if isinstance(part, nn.Linear)]
    with put_back(state.setdefault("table", [(one, "weight", one.weight) for one in linears])):
        return own(hidden, *args, **kwargs)


def cuts_gradients(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    return own(hidden, *args, **kwargs).detach() + 0 * hidden


def saves_one_call(own: Forward, state: dict[str, Any], hidden: Any, *args: Any, **kwargs: Any) -> Any:
    """What a backward pass needs is saved in one place, where the next call overwrites it."""
    output = own(hidden, *args, **kwargs)
    if output.requires_grad:
        state["saved"] = mine = float(hidden.detach().abs().mean())
        output.register_hook(lambda gradient: gradient * (state["saved"] / mine))
    return output


def saves_for_one_pass(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A backward pass writes into what was saved, so that another one through the same graph finds something else."""
    output = own(*args, **kwargs)
    if output.requires_grad:
        passes = itertools.count(1)
        output.register_hook(lambda gradient: gradient * next(passes))
    return output


def single_precision(own: Forward, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return own(*args, **kwargs).to(torch.float32)


def stale_copy(layer: nn.Module) -> None:
    core = layer.fused.core  # type: ignore[union-attr]
    core.mlp.down = dataclasses.replace(core.mlp.down, stored=core.mlp.down.stored.detach().clone())


def keeps_a_copy(layer: nn.Module) -> None:
    layer.spare = layer.mlp.down_proj.weight.detach().clone()  # type: ignore[union-attr, assignment]


def unties(layer: nn.Module) -> None:
    for owner in layer.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(parameter.detach().clone()))


def loses_attribute(layer: nn.Module) -> None:
    del layer.hidden_size


def unpicklable(layer: nn.Module) -> None:
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)  # type: ignore[method-assign]


def reverting(undo: Callable[[nn.Module], Callable[[], None]]) -> Callable[[nn.Module], Replacement]:
    """A replacer that does something more when it reverts: what ``undo`` returned for a layer that was to be replaced."""

    def replacer(model: nn.Module) -> Replacement:
        undone = {path: undo(module) for path, module in model.named_modules() if path.rpartition(".")[0] == "layers"}
        handle = replace_module(model)
        return dataclasses.replace(handle, swaps=(*(Undoing(undone[one.path]) for one in handle.replaced), *handle.swaps))

    return replacer


def had(layer: nn.Module, names: Callable[[nn.Module], Iterable[tuple[str, Any]]]) -> Callable[[], None]:
    kept = [(owner, name, one) for owner in layer.modules() for name, one in names(owner)]

    def undo() -> None:
        for owner, name, one in kept:
            setattr(owner, name, one)

    return undo


def has_its_parameters_again(layer: nn.Module) -> Callable[[], None]:
    return had(layer, lambda owner: owner.named_parameters(recurse=False))


def has_its_modules_again(layer: nn.Module) -> Callable[[], None]:
    return had(layer, nn.Module.named_children)


def keeps_a_state(layer: nn.Module) -> Callable[[], None]:
    return lambda: setattr(layer, "state", Worst())


def reverts_nothing(model: nn.Module) -> Replacement:
    return dataclasses.replace(replace_module(model), swaps=())


def counts_twice(model: nn.Module) -> Replacement:
    """Says that it replaced what was replaced already, or had to be refused."""
    handle = replace_module(model)
    replaced = handle.replaced or tuple(Replaced(one.path, one.layer_class, "Policy") for one in handle.left)
    return dataclasses.replace(handle, replaced=replaced)
