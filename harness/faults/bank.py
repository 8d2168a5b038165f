"""All seeded faults, and how to find one by its name."""

from __future__ import annotations

from ..suggest import suggestion
from .activation_norm import ACTIVATION_NORM
from .around import AROUND
from .cache import CACHE
from .calling import CALLING
from .diffusion import DIFFUSION
from .diffusion_calls import DIFFUSION_CALLS
from .engine import ENGINE
from .fault import Fault
from .graphs import GRAPHS
from .harness_own import HARNESS_OWN
from .later import LATER
from .layout import LAYOUT
from .lower import LOWER, LOWER_DIFFUSION
from .masks import MASKS
from .matching import MATCHING
from .methods import METHODS
from .process import PROCESS
from .rotary import ROTARY
from .rounding import ROUNDING
from .scores import SCORES
from .sizes import LARGEST_SIZES, PUBLISHED_SIZES, SIZES
from .workspace import WORKSPACE

FAULTS: tuple[Fault, ...] = (
    *ACTIVATION_NORM,
    *LAYOUT,
    *ROTARY,
    *SCORES,
    *MASKS,
    *CACHE,
    *WORKSPACE,
    *SIZES,
    *PUBLISHED_SIZES,
    *LARGEST_SIZES,
    *CALLING,
    *LATER,
    *AROUND,
    *ROUNDING,
    *LOWER,
    *DIFFUSION_CALLS,
    *DIFFUSION,
    *LOWER_DIFFUSION,
    *GRAPHS,
    *METHODS,
    *MATCHING,
    *ENGINE,
    *PROCESS,
    *HARNESS_OWN,
)


class UnknownFault(ValueError):
    """A fault was named that does not exist; the message suggests the nearest."""


def find_faults(names: tuple[str, ...]) -> tuple[Fault, ...]:
    """The faults of these names, a row (``F10``) standing for all of its faults; all faults where no name is given.

    Raises ``UnknownFault`` with a suggestion.
    """
    for name in names:
        if not any(name == fault.id or name in fault.rows for fault in FAULTS):
            known = [*(fault.id for fault in FAULTS), *(row for fault in FAULTS for row in fault.rows)]
            hint = suggestion(
                name.upper() if name.upper() in known else name, known, "rows are F01 to F83 and M01 to M26", written=repr
            )
            raise UnknownFault(f"no fault is called {name!r}; {hint}")
    return tuple(one for one in FAULTS if not names or one.id in names or set(one.rows) & set(names))
