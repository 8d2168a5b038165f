"""What all models of a process share is the same after a replacement as before, or the replacement has failed."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from harness.placed import placed
from harness.process import SHARED
from harness.properties import BY_NAME
from harness.search import SharedChanged, search, see_shared, shared_untouched
from policies import replace_module
from policies.replace import Replacement

from .tiny import TinyLlama, around

CASE = TinyLlama()


def another(*args: Any, **kwargs: Any) -> Any:
    """Somebody's own function."""


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "a function of a module": (
        lambda: setattr(modeling_llama, "apply_rotary_pos_emb", another),
        "transformers.models.llama.modeling_llama.apply_rotary_pos_emb",
    ),
    "a method": (
        lambda: setattr(modeling_llama.LlamaRMSNorm, "forward", another),
        "transformers.models.llama.modeling_llama.LlamaRMSNorm.forward",
    ),
    "a method that a class had of its base": (
        lambda: setattr(nn.Linear, "__call__", another),
        "torch.nn.modules.linear.Linear.__call__",
    ),
    "a method of tensors": (lambda: setattr(torch.Tensor, "matmul", another), "torch.Tensor.matmul"),
    "an operator": (lambda: setattr(nn.functional, "gelu", another), "torch.nn.functional.gelu"),
    "an activation by its name": (lambda: ACT2FN.__setitem__("silu", nn.ReLU), "transformers.activations.ACT2FN.silu"),
    "an attention by its name": (
        lambda: ALL_ATTENTION_FUNCTIONS.__setitem__("sdpa", another),
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS.sdpa",
    ),
    "the default dtype": (lambda: torch.set_default_dtype(torch.float64), "the default dtype"),
    "the precision": (lambda: torch.set_float32_matmul_precision("medium"), "the precision of products"),
    "the precision of products by oneDNN, of which torch's older setting then refuses to say": (
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        "the precision of products by oneDNN",
    ),
    "the precision of all": (lambda: setattr(torch.backends, "fp32_precision", "tf32"), "the precision of float32"),
    "autocast's dtype": (lambda: torch.set_autocast_dtype("cpu", torch.float16), "autocast's dtype on cpu"),
    "what moving a module does": (
        lambda: torch.__future__.set_overwrite_module_params_on_conversion(True),
        "new parameters where a module is moved",
    ),
    "a variable": (lambda: os.environ.update(OMP_NUM_THREADS="3"), "variables of the environment"),
    "a new variable": (lambda: os.environ.update(CUDA_OF_NOBODY="3"), "variables of the environment"),
    "the level of all loggers": (lambda: logging.root.setLevel(logging.DEBUG), "the root logger's level"),
    "the threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "the number of threads"),
    "an algorithm": (lambda: torch.use_deterministic_algorithms(True), "deterministic algorithms"),
    "a kernel": (lambda: torch.backends.cuda.enable_math_sdp(False), "plain attention"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_is_named_and_put_back(change: str) -> None:
    act, name = CHANGES[change]
    with pytest.raises(SharedChanged, match=name), shared_untouched(CASE):
        act()
    with shared_untouched(CASE):
        pass


def test_what_was_changed_before_is_noticed_by_whoever_comes_next() -> None:
    see_shared(CASE)
    nn.functional.gelu = another
    with pytest.raises(SharedChanged, match=r"torch\.nn\.functional\.gelu"), shared_untouched(CASE):
        pass
    assert nn.functional.gelu is not another


def test_what_the_surroundings_of_a_case_exchange_is_no_change() -> None:
    class Elsewhere(TinyLlama):
        @contextlib.contextmanager
        def surroundings(self) -> Iterator[None]:
            with mock.patch.object(torch.cuda, "current_device", another), mock.patch.object(nn.functional, "celu", another):
                yield

    case = Elsewhere()
    with shared_untouched(case), case.surroundings():
        pass
    see_shared(case)
    with case.surroundings(), shared_untouched(case), case.surroundings():
        pass
    assert not SHARED.differences()
    SHARED.exchanged.clear()


def test_to_ask_for_all_bits_where_nothing_was_asked_for_is_no_change() -> None:
    see_shared(CASE)
    torch.set_float32_matmul_precision("highest")
    assert not SHARED.differences()


def test_compiling_is_no_change() -> None:
    with shared_untouched(CASE):
        torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))


@pytest.mark.parametrize("name", ["model equality", "revert"])
def test_a_replacement_that_changes_what_the_original_runs_by_fails_every_property(name: str) -> None:
    """Every layer of every model would be normalised by it, and both sides be wrong alike."""

    def replacer(model: nn.Module) -> Replacement:
        modeling_llama.LlamaRMSNorm.forward = lambda self, x: x
        return replace_module(model)

    honest = modeling_llama.LlamaRMSNorm.forward
    found = search(BY_NAME[name], CASE, replacer, examples=3, seed=0)
    assert found.failure is not None
    assert "LlamaRMSNorm.forward" in str(found.failure[1])
    assert modeling_llama.LlamaRMSNorm.forward is honest


def draws(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    torch.rand(1)
    return own(*args, **kwargs)


def forgets_gradients(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    torch.set_grad_enabled(False)
    return own(*args, **kwargs)


def warns(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    warnings.warn("a copy was made", stacklevel=1)
    return own(*args, **kwargs)


def warns_once(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if not state.get("warned"):
        state["warned"] = True
        warnings.warn("a copy was made", stacklevel=1)
    return own(*args, **kwargs)


def prints(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    print("a copy was made")
    return own(*args, **kwargs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (draws, "draws other random numbers"),
        (forgets_gradients, "a call turns gradients off for whoever comes next"),
        (warns, "each call prints or warns, and none of the original's does: a copy was made"),
        (prints, "each call prints or warns, and none of the original's does: a copy was made"),
    ],
)
def test_what_a_call_leaves_behind_in_the_process_is_noticed(change: Any, words: str) -> None:
    found = search(BY_NAME["hands off"], CASE, around(change), examples=3, seed=0)
    assert found.failure is not None
    assert words in str(found.failure[1])


def test_what_is_said_once_is_no_fault() -> None:
    assert search(BY_NAME["hands off"], CASE, around(warns_once), examples=3, seed=0).failure is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_random_numbers_drawn_on_a_gpu_are_noticed() -> None:
    def draws_there(own: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        torch.rand(1, device="cuda")
        return own(*args, **kwargs)

    found = search(BY_NAME["hands off"], placed(CASE, "cuda"), around(draws_there), examples=3, seed=0)
    assert found.failure is not None
    assert "draws other random numbers" in str(found.failure[1])


def test_a_replacement_that_turns_gradients_off_is_noticed() -> None:
    def replacer(model: nn.Module) -> Replacement:
        torch.set_grad_enabled(False)
        return replace_module(model)

    found = search(BY_NAME["layer equality"], CASE, replacer, examples=3, seed=0)
    assert found.failure is not None
    assert "replacing turns gradients off" in str(found.failure[1])
