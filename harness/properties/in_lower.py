"""What the other properties ask in exact mode, asked in float32, bfloat16 and float16.

Kernels are written for the dtypes that people run, many for half precision alone, and a replacement may well leave float64 to the
original: what it does then, say with a hook or in training, says nothing of the kernel. The tolerances are coarse. They find what
is not done at all; how carefully a thing is done the rounding properties judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..case import Case
from ..covering import chosen_by
from ..rounding.statistic import DTYPES
from ..trial import Disagreement, NothingToAsk, OriginalFailed, Trial, Vacuous
from .accounting import ACCOUNTING
from .base import Property, living
from .broken import BROKEN
from .cache import CACHE
from .cache_edits import EDITED_CACHE, FRESH_CACHE, OTHER_CACHE, STATIC_CACHE
from .calls import INTERLEAVED, ORDER, REPEAT, SHAPES, SMALLEST_ROUNDED_HEAD, UNTOUCHED
from .copies import STATE_DICT
from .forms import FORMS
from .gradients import GRADIENTS_ALONE
from .holders import SHARED_MEMORY
from .hooks import HOOKS
from .lengths import FAR_PAST
from .memory import POISON
from .metamorphic import CAUSALITY, PADDING, ROWS
from .outputs import OUTPUTS
from .settings import SETTINGS
from .sharing import SHARING
from .threads import THREADS
from .training import CHECKPOINTED, TRAINING
from .transforms import TRANSFORMED

ASKED = (
    HOOKS,
    TRAINING,
    CHECKPOINTED,
    GRADIENTS_ALONE,
    SETTINGS,
    ACCOUNTING,
    FORMS,
    OUTPUTS,
    TRANSFORMED,
    CACHE,
    EDITED_CACHE,
    STATIC_CACHE,
    FAR_PAST,
    FRESH_CACHE,
    OTHER_CACHE,
    ROWS,
    PADDING,
    CAUSALITY,
    REPEAT,
    SHAPES,
    ORDER,
    INTERLEAVED,
    THREADS,
    BROKEN,
    UNTOUCHED,
    POISON,
    STATE_DICT,
    SHARING,
    SHARED_MEMORY,
)
"""Sizes are left out: the rounding properties ask all of them."""
LEAST = 36
"""Examples, so that each property that is asked by turns is asked at least once: seeds as they are planned (``covering``) leave
no part of twenty-nine unmet."""
CONFIRMATIONS = 3
"""Other numbers with which a departure has to be there as well. Norms of two elements that are nearly equal, for one, make much
of a rounding, and are seldom drawn."""


def _asked_in(dtype: torch.dtype) -> Callable[[Trial], None]:
    def check(trial: Trial) -> None:
        prop = chosen_by(trial.example.seed, [prop for prop in ASKED if prop.applies(trial.case)])
        trial = trial.in_dtype(dtype).at_least("head_size", SMALLEST_ROUNDED_HEAD)
        if dtype is not torch.float32 and not _runs(trial):
            raise NothingToAsk(f"the original gives no numbers in {dtype}")
        try:
            _asked(prop, trial)
        except (OriginalFailed, Vacuous) as failure:
            if dtype is torch.float32:
                raise
            raise NothingToAsk(f"{prop.name}: {failure}") from failure

    return check


def _runs(trial: Trial) -> bool:
    """Whether the original gives numbers. One that cannot run in half precision asks nothing of a replacement."""
    try:
        living(trial.expected_outputs, trial.inputs.valid)
    except (OriginalFailed, Vacuous):
        return False
    return True


def _asked(prop: Property, trial: Trial) -> None:
    try:
        prop.check(trial)
    except Disagreement as found:
        lost = found.error is None or not math.isfinite(found.error)  # not a matter of numbers
        if lost or all(_departs(prop, trial.with_numbers(1 + other)) for other in range(CONFIRMATIONS)):
            raise Disagreement(f"{prop.name}: {found}", error=found.error) from found


def _departs(prop: Property, trial: Trial) -> bool:
    try:
        prop.check(trial)
    except (Disagreement, Vacuous, OriginalFailed):  # where these numbers show nothing, what was found with the first stands
        return True
    return False


def _in_time(dtype: torch.dtype) -> Callable[[Case], bool]:
    """On a CPU a diffusion model takes a second an example in float16, for which bfloat16 stands there."""
    return lambda case: dtype is not torch.float16 or case.layered or case.device != "cpu"


IN_LOWER = tuple(
    Property(
        name=f"in {name}",
        statement=f"What other properties ask in float64 holds in {name} too, but for rounding: with hooks, settings, training, "
        "caches, masks, other shapes and other threads.",
        check=_asked_in(dtype),
        applies=_in_time(dtype),
        exact=False,
        share=0.15,
        least=LEAST,
    )
    for name, dtype in DTYPES.items()
)
