"""What the properties notice, one wrong replacement at a time, and in which words."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.utils import logging

from cases import CASES
from harness.case import Example
from harness.exact import exact_mode
from harness.faults.bank import find_faults
from harness.properties import BY_NAME
from harness.search import quiet, tell
from harness.trial import Disagreement, Trial
from policies import replace_module, structure
from policies.fused import layer as fused_layer

from . import tiny
from .asking import CASE, check, examples, first_failure
from .outcomes import failure, outcomes
from .wrong import caches, hooks, inputs, memories, numbers, replacing, training, weights


def test_what_is_kept_of_every_length_is_noticed_and_what_is_kept_of_some_is_not() -> None:
    problem = first_failure(BY_NAME["flat memory"], tiny.around(memories.keeps_a_mask_of_each_length), count=1)
    assert "something is kept of every length" in str(problem)
    assert first_failure(BY_NAME["flat memory"], tiny.around(memories.keeps_the_last_masks), count=1) is None


@pytest.mark.parametrize(
    ("prop", "wrong", "words"),
    [
        ("outputs asked for", hooks.deaf(tiny.in_a_step), "in a step: "),
        ("settings", weights.with_its_first_epsilon(tiny.in_a_step), "input_layernorm, set after"),
        ("settings", weights.with_its_first_epsilon(tiny.in_a_prompt), "input_layernorm, set after"),
        ("hooks", hooks.deaf(tiny.in_a_prompt), ": called 0 times on layers."),
        ("gradients", hooks.deaf_backwards, ", a backward hook on "),
    ],
)
def test_what_is_passed_over_in_some_calls_alone_is_noticed(prop: str, wrong: Callable[..., Any], words: str) -> None:
    assert words in str(first_failure(BY_NAME[prop], tiny.around(wrong), count=60))


@pytest.mark.parametrize(
    ("replacer", "words"),
    [
        (tiny.around(training.keeps_its_output), "stay alive when nobody holds the output"),
        (tiny.around(training.keeps_scores), " bytes are kept for a backward pass where the original keeps "),
        (tiny.edited(training.checkpoints_nothing), "in training with checkpointing, "),
    ],
)
def test_what_is_kept_for_a_backward_pass_too_long_or_too_much_of_is_noticed(replacer: Callable[..., Any], words: str) -> None:
    assert words in str(first_failure(BY_NAME["backward memory"], replacer, count=20))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (training.gives_what_nobody_learns_from, "a head learns from its result: Inference tensors cannot be saved"),
        (training.lays_tokens_first, "its result seen as a list of tokens: view size is not compatible"),
        (training.saves_what_it_gives, "its result written to before the backward pass: one of the variables needed"),
        (training.gives_a_view, "its result written to before the backward pass: Output 0 of "),
        (training.keeps_weights_itself, "changed before the backward pass, where the original raises: gradient of input 0"),
    ],
)
def test_a_result_with_which_less_can_be_done_is_noticed(wrong: Callable[..., Any], words: str) -> None:
    assert words in str(first_failure(BY_NAME["results"], tiny.around(wrong), count=20))


def test_a_library_that_saves_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bar would take a semaphore."""
    monkeypatch.setattr(logging.tqdm_lib, "tqdm", None)
    check(BY_NAME["pickle"], examples(1)[0])


def test_gradients_that_cannot_go_back_through_autocast_are_noticed() -> None:
    problem = first_failure(BY_NAME["gradients"], tiny.around(training.saves_what_it_was_given), count=20)
    assert "same dtype" in str(problem)


def test_a_gradient_that_is_lost_under_autocast_is_noticed_beside_larger_ones() -> None:
    problem = first_failure(BY_NAME["gradients"], tiny.around(training.learns_no_keys_under_autocast), count=40)
    assert "under autocast, " in str(problem) and "k_proj.weight: relative error 1.0e+00 at its own scale" in str(problem)


@pytest.mark.parametrize(
    ("prop", "replacer", "words"),
    [
        ("storages", tiny.around(caches.keeps_its_cache), "the cache of a call stays alive"),
        ("storages", tiny.around(caches.holds_its_cache_in_a_circle), "the cache of a call waits for a collector"),
        ("after an error", tiny.around(memories.leaves_gradients_off), "leaves gradients otherwise than they were"),
        ("pickle", replacing.configured, "save_pretrained writes another config.json"),
        ("hands off", replacing.seeded, "replacing a model draws random numbers"),
        ("hands off", replacing.seeded_elsewhere, "replacing a model draws random numbers"),
    ],
)
def test_what_is_left_behind_is_noticed(prop: str, replacer: Callable[[nn.Module], Any], words: str) -> None:
    assert words in str(first_failure(BY_NAME[prop], replacer, count=4))


@pytest.mark.parametrize(
    ("replacer", "words"),
    [
        (tiny.around(hooks.deaf(tiny.in_a_step)), "the last tokens decoded: called "),
        (tiny.around(hooks.hooked(hooks.by_rows)), "is shown tensors of shapes"),
        (tiny.around(hooks.hooked(hooks.in_place)), "what it was shown, after the call"),
        (hooks.unpatching, ": called 0 times on layers.0"),
    ],
    ids=["steps", "shapes", "in place", "patch"],
)
def test_hooks_that_see_less_or_something_else_are_noticed(replacer: Callable[[nn.Module], Any], words: str) -> None:
    assert words in str(first_failure(BY_NAME["hooks"], replacer, count=60))


def test_hooks_that_are_passed_over_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layer, "inner_hooks", lambda modules: None)
    assert isinstance(first_failure(BY_NAME["hooks"], replace_module, count=20), Disagreement)


def test_functions_of_a_part_s_own_that_are_passed_over_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    bloom = next(entry for entry in CASES if entry.name == "bloom").load()
    monkeypatch.setattr(structure, "overridden", lambda module: None)
    assert outcomes(("settings",), bloom, replace_module) == {"settings": "failed"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hooks_that_are_passed_over_in_a_lower_dtype_alone_are_noticed_there_alone(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = fused_layer.inner_hooks

    def passed_over(modules: list[nn.Module]) -> str | None:
        return None if modules[-1].weight.dtype is dtype else honest(modules)  # type: ignore[union-attr]

    monkeypatch.setattr(fused_layer, "inner_hooks", passed_over)
    assert first_failure(BY_NAME["hooks"], replace_module, count=20) is None
    lower = BY_NAME[f"in {str(dtype).removeprefix('torch.')}"]
    assert str(first_failure(lower, replace_module, count=400)).startswith("hooks: ")


def test_a_replacement_that_saves_what_backward_needs_of_one_call_alone_is_noticed() -> None:
    problem = first_failure(BY_NAME["gradients"], tiny.around(training.saves_one_call), count=20)
    assert ", of two calls: gradient of " in str(problem)


def test_a_layer_that_passes_no_gradients_on_where_it_learns_nothing_itself_is_noticed() -> None:
    problem = first_failure(BY_NAME["gradients"], tiny.around(training.detaches_where_frozen), count=40)
    assert "embed_tokens.weight has no gradient, and has one in the original" in str(problem)


def test_a_compiled_layer_that_knows_where_its_weights_were_is_noticed() -> None:
    problem = first_failure(BY_NAME["torch.compile"], tiny.edited(weights.keeps_its_memory), count=4)
    assert ", compiled, its weights then changed by new memory" in str(problem)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (caches.steps_alone_when_compiled, ", compiled, calls of "),
        (caches.sees_what_is_not_filled_when_compiled, "tokens on a static cache: last_hidden_state"),
        (training.cuts_gradients_when_compiled, ", compiled: input 0 has no gradient"),
    ],
)
def test_a_layer_that_is_wrong_only_where_it_is_compiled_is_noticed(wrong: Callable[..., Any], words: str) -> None:
    assert words in str(first_failure(BY_NAME["torch.compile"], tiny.around(wrong), count=4))


def test_a_layer_that_keeps_keys_in_the_dtype_that_it_was_first_in_is_noticed() -> None:
    problem = first_failure(BY_NAME["dtype moves"], tiny.around(caches.keeps_keys_as_they_first_were), count=8)
    assert "and float32, the last tokens decoded: last_hidden_state" in str(problem)


@pytest.mark.parametrize(
    ("prop", "wrong", "words"),
    [
        ("dtype moves", numbers.rounds_as_configured, "16 and float32"),
        ("call order", numbers.asks_for_versions, "do not track version counter"),
        ("rounding float32", numbers.lower_since_autocast, "a call before one under autocast, and after it"),
    ],
)
def test_what_shows_by_where_a_model_comes_from_or_has_been_alone_is_noticed(
    prop: str, wrong: Callable[..., Any], words: str
) -> None:
    assert words in str(first_failure(BY_NAME[prop], tiny.around(wrong), count=60))


def test_a_model_in_float64_that_has_the_digits_of_float32_is_noticed() -> None:
    bert = next(entry for entry in CASES if entry.name == "bert").load()
    assert "and plain float64" in failure("dtype moves", bert, tiny.around(numbers.half_the_digits))


def test_a_cache_of_another_dtype_that_is_passed_over_is_noticed_in_float32() -> None:
    """In float64 exact mode makes no numbers lower."""
    prop = dataclasses.replace(BY_NAME["edited cache"], exact=False)
    problem = first_failure(prop, tiny.around(caches.passes_over_a_cache_of_another_dtype), count=20)
    assert "after what is in the cache was lowered" in str(problem)


def test_a_layer_that_knows_no_deterministic_algorithm_where_the_original_does_is_noticed() -> None:
    problem = first_failure(BY_NAME["uninitialised memory"], tiny.around(memories.is_not_deterministic), count=1)
    assert "asked for deterministic algorithms alone: attention has no" in str(problem)


def test_what_goes_wrong_from_the_seventeenth_decoded_token_on_is_noticed() -> None:
    problem = first_failure(BY_NAME["many calls"], tiny.around(memories.sixteen_places), count=1)
    assert "264 tokens decoded one by one" in str(problem)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (caches.masks_by_the_last_row, " tokens at once behind a cache, with a mask of "),
        (caches.masks_the_first_row, " tokens at once behind a cache, with a mask of one row for all"),
        (caches.with_another_mask(caches.that_is_causal_where_queries_are_alike), "with a mask of one query for all"),
        (
            caches.with_another_mask(caches.of_other_heads),
            "1 tokens at once behind a cache, with a mask that weighs keys, for each head",
        ),
        (caches.with_another_mask(caches.that_only_hides), "with a mask that weighs keys, for each head"),
        (caches.no_cache_to_give_back, "continuing from the original's cache"),
        (caches.takes_the_first_layers_length, "from a cache whose layers hold different numbers of tokens"),
    ],
)
def test_a_cache_in_an_unusual_call_is_asked_for(wrong: Callable[..., Any], said: str) -> None:
    assert said in str(first_failure(BY_NAME["cache"], tiny.around(wrong), count=20))


@pytest.mark.parametrize(
    ("prop", "wrong", "said"),
    [
        ("static cache", caches.needs_a_key_in_each_part, "static cache, calls of "),
        ("far past", caches.sees_512_of_many_places, "in a cache of more places"),
        (
            "static cache",
            caches.with_another_mask(caches.that_only_hides),
            "4 tokens at once behind a static cache, with a mask that",
        ),
    ],
)
def test_a_preallocated_cache_of_many_places_or_masked_in_its_own_way_is_asked_for(
    prop: str, wrong: Callable[..., Any], said: str
) -> None:
    assert said in str(first_failure(BY_NAME[prop], tiny.around(wrong), count=24))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (caches.knows_its_layers, "a cache whose layers are of the caller's own class"),
        (caches.passes_over_a_bare_cache, "a cache of no kind, whose layers are of the caller's own class"),
        (caches.looks_at_layers, "on a cache that has no layers"),
    ],
)
def test_a_cache_that_is_not_the_librarys_own_or_has_other_layers_is_asked_for(wrong: Callable[..., Any], said: str) -> None:
    assert said in str(first_failure(BY_NAME["cache of another class"], tiny.around(wrong), count=20))


def test_a_replacement_that_saves_what_backward_needs_for_one_pass_alone_is_noticed() -> None:
    problem = first_failure(BY_NAME["gradients"], tiny.around(training.saves_for_one_pass), count=20)
    assert isinstance(problem, Disagreement)


def test_gradients_go_through_a_cache_where_a_plain_call_is_asked_besides() -> None:
    plain_first = [one for one in examples(24) if random.Random(one.seed).random() >= 0.5]
    with find_faults(("F83 prefix gradients",))[0].opened(replace_module) as faulty:
        problems = [tell(BY_NAME["gradients"], CASE, faulty, one)[1] for one in plain_first]
    noticed = [str(problem) for problem in problems if isinstance(problem, Disagreement)]
    assert noticed
    assert all("with a cache" in one for one in noticed)


@pytest.mark.parametrize("fault", ["F83 one part", "F83 another class", "F83 settings"])
def test_what_is_set_later_and_passed_over_is_noticed(fault: str) -> None:
    with find_faults((fault,))[0].opened(replace_module) as faulty:
        assert isinstance(first_failure(BY_NAME["settings"], faulty, count=20), Disagreement)


def test_what_is_kept_by_the_identity_of_a_tensor_whose_values_change_is_noticed() -> None:
    problem = first_failure(BY_NAME["call twice"], tiny.around(memories.keeps_the_last_mask), count=20)
    assert "the same call again, and other values in its tensors" in str(problem)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (weights.keeps_its_implementation, "the attention's implementation "),
        (weights.knows_no_later_bias, "a bias of "),
        (weights.reads_weights_alone, "an adapter around "),
        (weights.reads_what_is_parametrized, "a parametrization of "),
        (weights.reads_what_is_pruned, "a pruned weight of "),
    ],
)
def test_what_is_put_there_later_and_passed_over_is_noticed(wrong: Callable[..., Any], said: str) -> None:
    assert str(first_failure(BY_NAME["settings"], tiny.around(wrong), count=40)).startswith(said)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (weights.takes_gains_for_ones, "): last_hidden_state"),
        (weights.decodes_with_its_first_weights, "), decoding: last_hidden_state"),
    ],
)
def test_what_was_decided_before_other_weights_were_loaded_is_noticed(wrong: Callable[..., Any], said: str) -> None:
    assert said in str(first_failure(BY_NAME["state dict"], tiny.around(wrong), count=20))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replacing.has_its_parameters_again, "is not bit for bit the original's"),
        (replacing.has_its_modules_again, "is not bit for bit the original's"),
        (replacing.has_its_strides_again, ", the original ("),
        (replacing.has_its_classes_again, "is a Linear, not a ParametrizedLinear"),
        (replacing.keeps_a_state, "state is still set on layers.0"),
        (replacing.was_trained, ", and was set to "),
        (replacing.had_its_mode, ": training of layers.0"),
        (replacing.had_its_numbers, ", and was set to "),
        (replacing.had_its_dtype, "is not bit for bit the original's"),
    ],
)
def test_a_revert_that_brings_the_old_back_or_leaves_something_is_noticed(wrong: Callable[..., Any], said: str) -> None:
    assert said in str(first_failure(BY_NAME["revert"], replacing.reverting(wrong), count=20))


def test_a_revert_that_looks_layers_up_where_they_were_is_noticed() -> None:
    problem = first_failure(BY_NAME["revert"], replacing.reverts_by_path, count=20)
    assert isinstance(problem, AttributeError)


@pytest.mark.parametrize(
    ("replacer", "said"),
    [
        (replacing.replaced_and(replacing.drops_gradients), "after replacing: the gradient of "),
        (replacing.replaced_and(replacing.drops_hooks_on_parameters), "after replacing: a hook on "),
        (replacing.replaced_and(replacing.drops_attributes_of_parameters), "after replacing: an attribute of "),
        (replacing.replaced_and(replacing.drops_hooks_on_state), "after replacing: a hook on the state of "),
        (replacing.drops_gradients_at_last, "after revert: the gradient of "),
        (tiny.edited(replacing.cannot_be_printed), "raised AttributeError when it is printed"),
        (replacing.evaluating, "replacing a model whose training mode is True changes that"),
        (replacing.deaf_below_heads, "layers were replaced (no reason given)"),
        (replacing.deaf_to_layers, "layers.0, which was replaced in its model, is not when it is given by itself"),
    ],
)
def test_what_a_replacement_drops_or_does_not_find_is_noticed(replacer: Callable[..., Any], said: str) -> None:
    assert said in str(first_failure(BY_NAME["replaced again"], replacer, count=20))


def test_a_kernel_that_keeps_within_half_precision_is_noticed() -> None:
    problem = first_failure(BY_NAME["call forms"], tiny.around(inputs.within_half_precision), count=20)
    assert "called with a hidden state of 1e+06" in str(problem)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (inputs.divides_by_length, "called with a row of zeros"),
        (inputs.steps_by_size, "called with one row expanded to all"),
        (inputs.whole_storage, "called with tensors out of line in memory"),
        (inputs.made_finite, "called with a row of inf"),
        (inputs.causal_by_its_corners, "called with a mask of two documents apart and a question on both"),
        (inputs.cuts_masks, "called with a mask for two keys more: the original raises RuntimeError, the replacement nothing"),
    ],
)
def test_a_kernel_that_takes_its_input_for_a_usual_one_is_noticed(wrong: Callable[..., Any], said: str) -> None:
    assert said in str(first_failure(BY_NAME["call forms"], tiny.around(wrong), count=20))


def test_a_kernel_that_needs_a_row_is_noticed_where_the_original_needs_none() -> None:
    assert outcomes(("batch rows",), CASE, tiny.around(inputs.needs_a_row)) == {"batch rows": "held"}
    gpt_neo = next(entry for entry in CASES if entry.name == "gpt_neo").load()
    assert outcomes(("batch rows",), gpt_neo, tiny.around(inputs.needs_a_row)) == {"batch rows": "failed"}


@pytest.mark.parametrize(
    ("case", "wrong", "said"),
    [
        ("megatron", inputs.takes_any_name, "called with an_argument_of_nobody=1: the original raises TypeError"),
        ("gpt2", inputs.deaf_to_unheard_of_encoders, "called with an encoder's states: the original raises ValueError"),
        ("gpt2", inputs.needs_an_encoder, "called with no encoder's states"),
        ("bert", inputs.one_mask_of_the_encoders_for_all_heads, "a mask of the encoder's that weighs keys, for each head"),
        ("bert", inputs.encoder_of_each_row, "called with an encoder's states of one row for all"),
        ("gpt2", inputs.needs_something_of_the_encoder, "called with an encoder of which a row sees nothing"),
    ],
)
def test_a_call_that_an_original_refuses_or_takes_beside_an_encoder_is_asked_about(
    case: str, wrong: Callable[..., Any], said: str
) -> None:
    asked = next(entry for entry in CASES if entry.name == case).load()
    assert said in failure("call forms", asked, tiny.around(wrong))


def test_accounting_names_the_parameter_that_does_not_arrive() -> None:
    problem = first_failure(BY_NAME["parameter accounting"], tiny.edited(weights.stale_copy), count=20)
    assert "mlp.down_proj.weight, written in place: does not reach the replacement's output" in str(problem)


def test_accounting_names_the_slot_in_which_a_parameter_arrives() -> None:
    class Alike(tiny.TinyLlama):
        """Both norms have the same gains, so that only a change tells them apart."""

        def build(self, example: Example, **overrides: Any) -> nn.Module:
            model: Any = super().build(example, **overrides)
            with torch.no_grad():
                for layer in model.layers:
                    layer.post_attention_layernorm.weight.copy_(layer.input_layernorm.weight)
            return model

    def swapped(layer: Any) -> None:
        anatomy = layer.fused.core.anatomy
        first, second = anatomy.attention_norm, anatomy.mlp_norm
        object.__setattr__(anatomy, "attention_norm", second)
        object.__setattr__(anatomy, "mlp_norm", first)

    messages = []
    for example in examples(20):
        try:
            with quiet(), exact_mode():
                BY_NAME["parameter accounting"].check(Trial(Alike(), example, tiny.edited(swapped)))
        except Disagreement as problem:
            messages.append(str(problem))
    assert any("reaches the replacement's output in the slot of" in message for message in messages)
