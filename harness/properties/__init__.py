"""The properties: what has to hold of every replacement, each stated in one sentence.

A property is a function of a ``Trial``. It returns where it holds and raises ``Disagreement`` where it does not; errors
of the replaced side count as disagreement, errors of the original's do not.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..suggest import suggestion
from .accounting import ACCOUNTING
from .backward_memory import BACKWARD_MEMORY
from .base import Property
from .broken import BROKEN
from .cache import CACHE
from .cache_edits import EDITED_CACHE, FRESH_CACHE, OTHER_CACHE, STATIC_CACHE
from .calls import INTERLEAVED, ORDER, REPEAT, SHAPES, UNTOUCHED
from .captured import CAPTURED
from .compiled import COMPILED
from .contract import CONTRACT
from .copies import DEEPCOPY, PICKLED, STATE_DICT
from .equality import LAYER_EQUALITY, MODEL_EQUALITY
from .forms import FORMS
from .gradients import GRADIENTS
from .holders import SHARED_MEMORY
from .hooks import HOOKS
from .in_lower import IN_LOWER
from .lengths import EACH_LENGTH, FAR_PAST
from .lifecycle import IDEMPOTENCE, REVERT
from .memory import FLAT, MANY_CALLS, POISON, STORAGES
from .metamorphic import CAUSALITY, PADDING, ROWS
from .moves import MOVES
from .outputs import OUTPUTS
from .refusal import REFUSAL
from .results import RESULTS
from .rounding import ROUNDING
from .settings import SETTINGS
from .sharing import SHARING
from .sizes import LARGE, LARGEST, LONG, MANY_LAYERS, MANY_ROWS, MANY_TOKENS, PUBLISHED
from .threads import THREADS
from .training import TRAINING
from .transforms import TRANSFORMED

PROPERTIES: tuple[Property, ...] = (
    CONTRACT,
    LAYER_EQUALITY,
    MODEL_EQUALITY,
    FORMS,
    OUTPUTS,
    HOOKS,
    SETTINGS,
    ACCOUNTING,
    CACHE,
    EDITED_CACHE,
    STATIC_CACHE,
    FRESH_CACHE,
    OTHER_CACHE,
    EACH_LENGTH,
    LONG,
    PUBLISHED,
    MANY_TOKENS,
    FAR_PAST,
    MANY_ROWS,
    MANY_LAYERS,
    LARGE,
    LARGEST,
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
    GRADIENTS,
    RESULTS,
    TRAINING,
    BACKWARD_MEMORY,
    TRANSFORMED,
    COMPILED,
    CAPTURED,
    *IN_LOWER,
    REVERT,
    IDEMPOTENCE,
    DEEPCOPY,
    PICKLED,
    STATE_DICT,
    MOVES,
    SHARING,
    SHARED_MEMORY,
    STORAGES,
    FLAT,
    MANY_CALLS,
    REFUSAL,
    *ROUNDING,
)
BY_NAME = {one.name: one for one in PROPERTIES}


class UnknownProperty(ValueError):
    """A property was named that does not exist; the message suggests the nearest."""


def choose_properties(names: Iterable[str]) -> tuple[Property, ...]:
    """The properties of these names in their usual order; all of them where no name is given.

    Raises ``UnknownProperty`` with a suggestion.
    """
    wanted = set(names)
    for name in sorted(wanted - BY_NAME.keys()):
        hint = suggestion(name, BY_NAME, f"there are: {', '.join(BY_NAME)}", written=repr)
        raise UnknownProperty(f"no property is called {name!r}; {hint}")
    return tuple(one for one in PROPERTIES if not wanted or one.name in wanted)


__all__ = ["BY_NAME", "PROPERTIES", "Property", "UnknownProperty", "choose_properties"]
