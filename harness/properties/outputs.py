"""What a caller may ask a model for: other outputs, other forms, weights and caches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..trial import Disagreement, Trial, original_side, replacement_side
from .base import Property, living, same_tensor, transformers_like
from .cache import arguments, in_chunks, piece, valid_in


def _asked(trial: Trial) -> None:
    """Hidden states, attention weights, a cache or none, a tuple or an object: all as the original gives them."""
    trial = trial.vary(attention="eager") if trial.example.seed & 1 else trial
    model = trial.replaced.model  # a copy of an original that was never asked: what is asked of one leaves hooks on it
    living(trial.expected_outputs, trial.inputs.valid)
    for flags in _requests(trial):
        with original_side(f"asked for {_words(flags)}"):
            expected = trial.original(**{**trial.inputs.kwargs, **flags})
        actual = model(**{**trial.fresh_inputs().kwargs, **flags})
        _same(trial, expected, actual, f"asked for {_words(flags)}: ", trial.inputs.valid)
    if trial.case.caches(trial.example):
        for flags in _requests(trial)[:2]:
            _asked_of_a_step(trial, model, flags)
    after = trial.run_replaced(model, trial.fresh_inputs())
    _same(trial, trial.expected_outputs, after, "asked for nothing any more: ", trial.inputs.valid)


def _asked_of_a_step(trial: Trial, model: nn.Module, flags: dict[str, Any]) -> None:
    """The last token behind a cache of all others: kernels for decoding are their own."""
    kwargs = arguments(trial.inputs)
    tokens, valid = kwargs["input_ids"].shape[1], valid_in(trial.inputs, kwargs)
    if tokens < 2:
        return
    what = f"asked for {_words(flags)} in a step"
    with original_side(what):
        expected = _last_token(trial.original, kwargs, tokens, flags)
    with replacement_side(what):
        actual = _last_token(model, kwargs, tokens, flags)
    _same(trial, expected, actual, f"{what}: ", None if valid is None else valid[:, -1:])


def _last_token(model: nn.Module, kwargs: dict[str, Any], tokens: int, flags: dict[str, Any]) -> Any:
    cache = in_chunks(model, kwargs, [tokens - 1])[1]
    return model(**piece(kwargs, tokens - 1, tokens), past_key_values=cache, **flags)


def _requests(trial: Trial) -> tuple[dict[str, Any], ...]:
    seed = trial.example.seed
    requests: list[dict[str, Any]] = [
        {"output_hidden_states": True, "return_dict": bool(seed & 2)},
        {"output_attentions": True, "output_hidden_states": bool(seed & 4), "return_dict": bool(seed & 8)},
        {"return_dict": False},
    ]
    if trial.case.caches(trial.example):
        requests += [{"use_cache": True}, {"use_cache": True, "return_dict": False}]
    return tuple(requests)


def _words(flags: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in flags.items())


def _same(trial: Trial, expected: Any, actual: Any, path: str, valid: Tensor | None) -> None:
    """Compare outputs of any nesting: same types, names, lengths, and tensors equal wherever they count, by ``valid`` (B, T)."""
    if isinstance(expected, Tensor):
        _same_tensor(trial, expected, actual, path, valid)
        return
    if type(actual) is not type(expected):
        raise Disagreement(f"{path} is a {type(actual).__name__}, the original's a {type(expected).__name__}")
    if isinstance(expected, dict):
        if list(expected) != list(actual):
            raise Disagreement(f"{path} has {list(actual)}, the original's {list(expected)}")
        for name in expected:
            _same(trial, expected[name], actual[name], f"{path}{name}", valid)
    elif isinstance(expected, tuple | list):
        if len(expected) != len(actual):
            raise Disagreement(f"{path} has {len(actual)} values, the original's {len(expected)}")
        for i, (mine, its) in enumerate(zip(expected, actual, strict=True)):
            _same(trial, mine, its, f"{path}[{i}]", valid)
    elif hasattr(expected, "layers"):
        for name, mine, its in _cache_tensors(expected, actual):
            _same_tensor(trial, mine, its, f"{path}: {name}", valid)


def _cache_tensors(expected: Any, actual: Any) -> list[tuple[str, Tensor, Any]]:
    """Keys and values (B, K, S, E) of a cache, layer by layer."""
    if len(expected.layers) != len(actual.layers):
        raise Disagreement(f"a cache of {len(actual.layers)} layers, the original's of {len(expected.layers)}")
    pairs = list(enumerate(zip(expected.layers, actual.layers, strict=True)))
    return [(f"layer {i} {name}", getattr(a, name), getattr(b, name)) for i, (a, b) in pairs for name in ("keys", "values")]


def _same_tensor(trial: Trial, expected: Tensor, actual: Any, path: str, valid: Tensor | None) -> None:
    mine, its = _counting(valid, expected), actual
    if isinstance(actual, Tensor) and actual.shape == expected.shape:
        its = _counting(valid, actual)
    same_tensor(trial, mine, its, None, path)


def _counting(valid: Tensor | None, tensor: Tensor) -> Tensor:
    """The positions that count of (B, T, ...) states and of (B, H, T, S) weights or keys; none of anything else."""
    if valid is None:
        return tensor
    if tensor.dim() == 4:
        tensor = tensor.transpose(1, 2)
    if tensor.shape[:2] == valid.shape:
        return tensor[valid]
    return tensor[:0]


OUTPUTS = Property(
    name="outputs asked for",
    statement="Hidden states, attention weights, caches, tuples, objects: all come in the original's form and values, of a call "
    "and of a step of decoding.",
    check=_asked,
    applies=transformers_like,
    share=0.05,
)
