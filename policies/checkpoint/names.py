"""Which entry of a checkpoint goes where in a model.

The rules are transformers': renamings of its own for old checkpoints, the prefix of the base model added or taken away
(``model.``, ``transformer.``, ``bert.``), tied parameters filled from whichever of their names is there, and names that
a model declares to be of no interest. What is left over on either side is a problem, with one exception: a base model
may be taken out of the checkpoint of a model with a head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .stored import DTYPES, CheckpointError, Entry, Stored, mapped


@dataclass(eq=False)
class Place:
    """One parameter or saved buffer of a model under all its names, and the entry that fills it."""

    tensor: Tensor
    holders: list[tuple[str, nn.Module, str]] = field(default_factory=list)
    """Full name, module, attribute."""
    entry: Entry | None = None

    @property
    def name(self) -> str:
        return self.holders[0][0]

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.holders]


@dataclass(frozen=True)
class Assignment:
    """``places`` by each of their names; ``unused`` entries belong to a head of which the model is the base, or to other parts
    of a larger model that it is one of."""

    places: dict[str, Place]
    unused: tuple[str, ...]


def assign(model: nn.Module, stored: Stored) -> Assignment:
    """Find an entry for each parameter and saved buffer of ``model``. Raises ``CheckpointError`` with every problem."""
    places = _places(model)
    found, extra = _sort(model, stored, places)
    problems: list[str] = []
    for place in dict.fromkeys(places.values()):
        candidates = [entry for name in place.names for entry in found.get(name, ())]
        problems += _settle(place, candidates)
    unused = _of_the_head(model, stored, extra) or _of_the_other_parts(model, stored, extra)
    ignored = _ignored(model)
    problems += [
        f"unexpected: {name} {_shape(stored.entries[name].shape)}"
        for name in extra
        if name not in unused and not any(pattern.search(name) for pattern in ignored)
    ]
    if problems:
        raise CheckpointError(f"{stored.path} does not fit {type(model).__name__}", problems)
    return Assignment(places, unused)


def _places(model: nn.Module) -> dict[str, Place]:
    by_tensor: dict[int, Place] = {}
    places: dict[str, Place] = {}
    for name, module, attribute, tensor in _saved(model):
        place = by_tensor.setdefault(id(tensor), Place(tensor))
        place.holders.append((name, module, attribute))
        places[name] = place
    return places


def _saved(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        buffers = {name: one for name, one in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None:
                yield f"{path}.{name}" if path else name, module, name, tensor


def _sort(model: nn.Module, stored: Stored, places: dict[str, Place]) -> tuple[dict[str, list[Entry]], list[str]]:
    """Entries by the name in the model that they go to, and the names of those that go nowhere. What the model computes itself,
    as checkpoints of old have it (causal masks), is neither."""
    renamed = _renaming(model, stored)
    prefix = getattr(model, "base_model_prefix", "")
    found: dict[str, list[Entry]] = {}
    extra: list[str] = []
    computed = {name for name, _ in model.named_buffers()} - places.keys()
    for name, entry in stored.entries.items():
        forms = list(_forms(renamed(name), name, prefix))
        target = next((one for one in forms if one in places), None)
        if target is not None:
            found.setdefault(target, []).append(entry)
        elif computed.isdisjoint(forms):
            extra.append(name)
    return found, extra


def _forms(renamed: str, name: str, prefix: str) -> Iterator[str]:
    """Names that an entry may have in the model, likeliest first."""
    for one in (renamed, name):
        if prefix and one.startswith(f"{prefix}."):
            yield one.removeprefix(f"{prefix}.")
        yield one
        if prefix:
            yield f"{prefix}.{one}"


def _renaming(model: nn.Module, stored: Stored) -> Callable[[str], str]:
    """The library's renamings of old or differently cut checkpoints; conversions of values are not among them."""
    if hasattr(model, "_fix_state_dict_keys_on_load"):  # of diffusers
        renamed: dict[str, str] = {name: name for name in stored.entries}
        model._fix_state_dict_keys_on_load(renamed)  # type: ignore[operator]
        now = {name: new for new, name in renamed.items()}
        return lambda name: now.get(name, name)
    if not hasattr(model, "_init_weights"):
        return lambda name: name
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    rules: Any = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]

    def rename(name: str) -> str:
        for rule in rules:
            name, _ = rule.rename_source_key(name)
        return name

    return rename


def _settle(place: Place, candidates: list[Entry]) -> list[str]:
    if not candidates:
        tied = f" (tied to {', '.join(place.names[1:])})" if len(place.names) > 1 else ""
        return [f"missing: {place.name}{tied} {_shape(place.tensor.shape)}"]
    place.entry = candidates[0]
    problems = [problem for entry in candidates for problem in _unfit(place, entry)]
    if not problems:
        for other in candidates[1:]:
            if not torch.equal(mapped(candidates[0]), mapped(other)):
                names = f"{candidates[0].name} and {other.name}"
                problems.append(f"differing: {names} are one parameter in the model and two values in the checkpoint")
    return problems


def _unfit(place: Place, entry: Entry) -> Iterator[str]:
    wanted = tuple(place.tensor.shape)
    dtype = DTYPES.get(entry.dtype)
    if entry.shape != wanted:
        yield f"wrong shape: {entry.name} is {_shape(entry.shape)}, {place.name} in the model is {_shape(wanted)}"
    elif dtype is None or dtype.is_floating_point != place.tensor.is_floating_point():
        yield f"unreadable: {entry.name} is stored as {entry.dtype}, {place.name} in the model is {place.tensor.dtype}"


def _of_the_head(model: nn.Module, stored: Stored, extra: list[str]) -> tuple[str, ...]:
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or hasattr(model, prefix) or not any(name.startswith(f"{prefix}.") for name in stored.entries):
        return ()
    return tuple(name for name in extra if not name.startswith(f"{prefix}."))


def _of_the_other_parts(model: nn.Module, stored: Stored, extra: list[str]) -> tuple[str, ...]:
    """Where the checkpoint's configuration has the model's as a part (the text tower of a CLIP): what lies beside it there."""
    part = getattr(getattr(model, "config", None), "base_config_key", "")
    if not part or part not in stored.settings():
        return ()
    own = {name.partition(".")[0] for name in stored.entries.keys() - set(extra)}
    return tuple(name for name in extra if name.partition(".")[0] not in own)


def _ignored(model: nn.Module) -> list[re.Pattern[str]]:
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    buffers = [name for name, _ in model.named_buffers()]
    # Checkpoints of old hold these, per layer or at all, where today's models compute them.
    patterns += [rf"(^|\.){one}$" for one in ("rotary_emb\\.inv_freq", "position_ids") if _ends(buffers, one)]
    if hasattr(model, "_init_weights"):  # a constant, which transformers names for some of its classes that had it
        patterns.append(r"(^|\.)attn(\.attention)?\.masked_bias$")
    return [re.compile(pattern) for pattern in patterns]


def _ends(names: list[str], pattern: str) -> bool:
    return any(re.search(rf"(^|\.){pattern}$", name) for name in names)


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
