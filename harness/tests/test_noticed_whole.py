"""What the properties notice of models that are replaced as a whole, one wrong replacement at a time, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from cases import CASES

from . import tiny
from .outcomes import failure
from .wrong import whole

UNET, VAE = (next(entry for entry in CASES if entry.name == name).load() for name in ("unet", "vae"))


@pytest.mark.parametrize(
    ("case", "prop", "replacer", "words"),
    [
        (
            UNET,
            "contract",
            tiny.edited(whole.calling(whole.always_an_object)),
            "the model returns a UNet2DConditionOutput, the original a tuple",
        ),
        (UNET, "contract", tiny.edited(whole.calling(whole.channels_last)), "sample cannot be viewed in another shape"),
        (VAE, "contract", tiny.edited(whole.takes_no_generator), "the replacement's decode has another signature"),
        (UNET, "hooks", tiny.edited(whole.deaf_itself), "times on the model, in the original 1 times"),
        (UNET, "hooks", tiny.edited(whole.passes_over_a_forward_of_its_own), "times on the model, in the original 1 times"),
        (UNET, "dtype moves", tiny.edited(whole.names_its_first_dtype), "the model's dtype is torch.float32, the original's"),
        (VAE, "pickle", tiny.edited(whole.saves_by_no_options), "save_pretrained writes "),
        (VAE, "pickle", tiny.edited(whole.is_rounded_by_saving), "after save_pretrained: "),
    ],
)
def test_a_whole_model_that_its_callers_cannot_use_as_the_original_is_noticed(
    case: Any, prop: str, replacer: Any, words: str
) -> None:
    assert words in failure(prop, case, replacer)


@pytest.mark.parametrize(
    ("prop", "wrong", "words"),
    [
        ("call order", tiny.edited(whole.goes_on_with_residuals), "a call that came "),
        ("model equality", tiny.edited(whole.calling(whole.takes_one_kind_of_residuals)), "whole model: sample"),
        ("model equality", tiny.edited(whole.calling(whole.takes_no_residuals_of_the_old_name)), "whole model: sample"),
        ("model equality", tiny.edited(whole.calling(whole.writes_a_timestep_to_the_first_row)), "whole model: sample"),
        ("model equality", tiny.edited(whole.calling(whole.gives_nothing_without_text)), "whole model: sample"),
    ],
)
def test_a_unet_that_takes_what_side_models_schedulers_and_prompts_may_give_otherwise_is_noticed(
    prop: str, wrong: Any, words: str
) -> None:
    assert words in failure(prop, UNET, wrong)
