"""Replacements of whole diffusion models that their callers take for the original, and that are not quite."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = dict[str, Any]
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual", "down_intrablock_additional_residuals")


def calling(change: Callable[[Callable[..., Any], Call], Any]) -> Callable[[nn.Module], None]:
    """An edit by which a replaced UNet answers ``change(its own forward, arguments by name)``."""

    def edit(model: nn.Module) -> None:
        before: Any = type(model)
        names = list(inspect.signature(model.forward).parameters)

        @functools.wraps(before.forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return change(functools.partial(before.forward, self), {**dict(zip(names, args, strict=False)), **kwargs})

        on_top(model, forward=forward)

    return edit


def on_top(model: nn.Module, **functions: Any) -> None:
    """Put a class with ``functions`` on top of the replaced model's."""
    before = type(model)
    model.__class__ = type(before.__name__, (before,), functions)


def with_sample(result: Any, sample: Tensor) -> Any:
    """The same kind of result with another image."""
    return (sample,) if isinstance(result, tuple) else type(result)(sample=sample)


def always_an_object(own: Callable[..., Any], call: Call) -> Any:
    return own(**{**call, "return_dict": True})


def channels_last(own: Callable[..., Any], call: Call) -> Any:
    result = own(**call)
    return with_sample(result, result[0].contiguous(memory_format=torch.channels_last))


def takes_no_generator(model: nn.Module) -> None:
    before: Any = type(model)

    def decode(self: Any, z: Tensor, return_dict: bool = True) -> Any:
        return before.decode(self, z, return_dict=return_dict)

    on_top(model, decode=decode)


def deaf_itself(model: nn.Module) -> None:
    """Calls its forward, whatever hooks it has."""
    on_top(model, __call__=lambda self, *args, **kwargs: self.forward(*args, **kwargs))


def passes_over_a_forward_of_its_own(model: nn.Module) -> None:
    on_top(model, __call__=lambda self, *args, **kwargs: type(self).forward(self, *args, **kwargs))


def names_its_first_dtype(model: Any) -> None:
    first = model.dtype
    on_top(model, dtype=property(lambda self: first))


def goes_on_with_residuals(model: nn.Module) -> None:
    """As who keeps the inputs of a graph by their shapes, and copies to them what a call brings."""
    kept: dict[Any, Any] = {}

    def change(own: Callable[..., Any], call: Call) -> Any:
        size, given = call["sample"].shape, {name: copy.copy(call[name]) for name in RESIDUALS if name in call}
        kept[size] = given or kept.get(size, {})
        return own(**{**call, **{name: copy.copy(value) for name, value in kept[size].items()}})

    calling(change)(model)


def takes_one_kind_of_residuals(own: Callable[..., Any], call: Call) -> Any:
    dropped = ("down_intrablock_additional_residuals",) if "mid_block_additional_residual" in call else ()
    return own(**{name: value for name, value in call.items() if name not in dropped})


def takes_no_residuals_of_the_old_name(own: Callable[..., Any], call: Call) -> Any:
    dropped = () if "mid_block_additional_residual" in call else ("down_block_additional_residuals",)
    return own(**{name: value for name, value in call.items() if name not in dropped})


def writes_a_timestep_to_the_first_row(own: Callable[..., Any], call: Call) -> Any:
    step, batch = call["timestep"], len(call["sample"])
    if isinstance(step, Tensor) and step.shape == (1,):
        step = torch.cat((step, step.new_zeros(batch - 1)))
    return own(**{**call, "timestep": step})


def gives_nothing_without_text(own: Callable[..., Any], call: Call) -> Any:
    result, mask = own(**call), call.get("encoder_attention_mask")
    return result if mask is None else with_sample(result, result[0] * mask.any(1)[:, None, None, None])


def saves_by_no_options(model: nn.Module) -> None:
    before: Any = type(model)
    on_top(model, save_pretrained=lambda self, folder, **options: before.save_pretrained(self, folder))


def is_rounded_by_saving(model: nn.Module) -> None:
    before: Any = type(model)

    def save(self: Any, *args: Any, **options: Any) -> None:
        before.save_pretrained(self, *args, **options)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.half())

    on_top(model, save_pretrained=save)
