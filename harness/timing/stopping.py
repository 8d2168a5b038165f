"""When to look at the samples, and what each look may spend.

Looking at the data repeatedly and stopping when they please inflates false alarms. Here the looks are planned before the
first sample, and the error allowance is divided among them: by the union bound all intervals of one comparison cover the
true ratio together with the stated confidence, whatever rule decides to stop. Half of the allowance is kept for the last
look, so that a comparison that runs to its end is hardly wider than one without looks (normal quantile 2.81 instead of
2.58 at 99 %).

Source for divided allowances: K. K. G. Lan, D. L. DeMets, "Discrete sequential boundaries for clinical trials",
Biometrika 70 (1983); the union bound is the simplest, conservative, spending rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .statistics import MARGIN, Judgement

FIRST_LOOK_BLOCKS = 16
_EARLY_LOOKS = 5
LAST_SHARE = 0.5
_RELATIVE_PRECISION = 0.1


@dataclass(frozen=True, kw_only=True)
class Look:
    """One planned judgement: after ``blocks`` blocks, spending ``share`` of the error allowance."""

    blocks: int
    share: float


def plan_looks(maximum_blocks: int) -> tuple[Look, ...]:
    """Looks at halvings of ``maximum_blocks`` down to ``FIRST_LOOK_BLOCKS``; the last one is at the maximum itself.

    Shares add up to one.
    """
    early = [maximum_blocks >> step for step in range(_EARLY_LOOKS, 0, -1)]
    early = [blocks for blocks in early if blocks >= FIRST_LOOK_BLOCKS]
    if not early:
        return (Look(blocks=maximum_blocks, share=1.0),)
    share = (1 - LAST_SHARE) / len(early)
    return (*(Look(blocks=blocks, share=share) for blocks in early), Look(blocks=maximum_blocks, share=LAST_SHARE))


def settled(judgement: Judgement) -> bool:
    """True when more samples would change nothing that is reported.

    SAME is settled; FASTER and SLOWER are once the interval's half-width is below half the margin or below a tenth of
    the effect, whichever is wider. AMBIGUOUS goes on; VOID stops.
    """
    if judgement.verdict in ("SAME", "VOID"):
        return True
    if judgement.ratio is None or judgement.verdict == "AMBIGUOUS":
        return False
    half_width = math.log(judgement.ratio.high / judgement.ratio.low) / 2
    return half_width <= max(MARGIN / 2, _RELATIVE_PRECISION * abs(math.log(judgement.ratio.estimate)))
