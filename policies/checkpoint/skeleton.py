"""A model before it has weights: parameters on the meta device, and what no checkpoint holds computed.

Rotary frequencies, position ids and causal masks are buffers that are not saved. transformers models know how to compute
theirs again; they are asked to, twice over different contents, and a buffer that does not come out the same both times
was never computed: such a model is refused, not handed out with whatever lay in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .stored import CheckpointError, Stored

Model = Any
"""A model's class of transformers or diffusers (an Auto class too), a configuration of transformers, or a function that
builds a model."""


def build_skeleton(model: Model, stored: Stored, dtype: torch.dtype | None) -> nn.Module:
    """``model`` in evaluation mode, with parameters and saved buffers on the meta device. Raises ``CheckpointError``."""
    config, build = _configured(model, stored)
    stated = None if hasattr(model, "load_config") else getattr(config, "dtype", None) or stored.dtype  # diffusers reads neither
    wanted = dtype or stated or torch.get_default_dtype()
    for one in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
        if one is not None:
            one.dtype = wanted
    with _building_in(wanted), _nothing_initialised() if config is not None else nullcontext():
        built = build()
    if not isinstance(built, nn.Module):
        raise CheckpointError(stored.path, [f"{model!r} built a {type(built).__name__}, not a model"])
    tie: Any = getattr(built, "tie_weights", None)
    if tie is not None:
        tie()  # which older releases of transformers leave undone while a model has no weights
    _refuse_kept_in_float32(built, stored, wanted)
    _compute_buffers(built, stored)
    return built.eval()


def _configured(model: Model, stored: Stored) -> tuple[Any, Callable[[], nn.Module]]:
    """transformers' configuration of ``model``, if it has one, and what builds it."""
    if hasattr(model, "load_config"):
        settings = _from_folder(model.load_config, stored)
        return None, lambda: model.from_config(settings)
    if hasattr(model, "model_type") and not isinstance(model, type):
        config, build = copy.deepcopy(model), _class_named(model, stored)
    elif hasattr(model, "_model_mapping"):
        from transformers import AutoConfig

        config, build = _from_folder(AutoConfig.from_pretrained, stored), model.from_config
    elif hasattr(model, "config_class"):
        config, build = _from_folder(model.config_class.from_pretrained, stored), model
    else:
        return None, model
    return config, lambda: build(config)


def _from_folder(load: Callable[[str], Any], stored: Stored) -> Any:
    if not (stored.folder / "config.json").is_file():
        raise CheckpointError(stored.path, ["no config.json beside the weights: give a configuration or a function instead"])
    try:
        return load(str(stored.folder))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(stored.path, [f"config.json cannot be used: {' '.join(str(error).split())}"]) from error


def _class_named(config: Any, stored: Stored) -> Any:
    import transformers

    name = (config.architectures or [None])[0]
    if name is None:
        raise CheckpointError(stored.path, ["the configuration names no architecture: give the model's class or a function"])
    found = getattr(transformers, name, None)
    if found is None:
        raise CheckpointError(stored.path, [f"transformers has no {name}, which the configuration names"])
    return found


@contextmanager
def _building_in(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def _nothing_initialised() -> AbstractContextManager[None]:
    """Saves transformers the initialisation of weights that are not there."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def _refuse_kept_in_float32(model: nn.Module, stored: Stored, dtype: torch.dtype) -> None:
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if kept and dtype in (torch.float16, torch.bfloat16):
        names = ", ".join(sorted(kept))
        raise CheckpointError(stored.path, [f"{type(model).__name__} keeps {names} in float32 when in {dtype}: not supported"])


def _compute_buffers(model: nn.Module, stored: Stored) -> None:
    owners: list[tuple[str, Any]] = []
    problems: list[str] = []
    for path, module in model.named_modules():
        if hasattr(module, "_init_weights"):
            owners.append((f"{path}." if path else "", module))
        names = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]
        owner = next((one for prefix, one in reversed(owners) if f"{path}.".startswith(prefix)), None)
        unknown = names if owner is None else _compute(owner, module, names)
        unknown += [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_meta]
        here = f"{path}." if path else ""
        problems += [f"{here}{name} is not saved, and the model does not say how to compute it" for name in unknown]
    if problems:
        raise CheckpointError(stored.path, problems)


@torch.no_grad()
def _compute(owner: Any, module: nn.Module, names: list[str]) -> list[str]:
    """Have ``owner`` compute these buffers of ``module``; the names of those that it passes over."""
    if not names:
        return []
    outcomes: list[dict[str, Tensor]] = []
    for content in (0, 1):
        for name in names:
            buffer: Any = module._buffers[name]
            module._buffers[name] = torch.full_like(buffer, content, device="cpu")
        owner._init_weights(module)
        outcomes.append({name: module._buffers[name] for name in names})  # type: ignore[misc]
    first, second = outcomes
    return [name for name in names if not torch.equal(first[name], second[name])]
