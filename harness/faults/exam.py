"""One case's exam: every fault that fits is tried until a property notices it.

A property's examples are those of a search by the same seed, and serve all faults. Properties are asked in two rounds: a
first look of a few examples each, the likeliest noticer first, then each to the depth of the profile. Examples are
counted over all properties, so a fault that only the tenth property notices pays for the nine before it. A kill counts
only if the clean policy holds on the same example, and not if the fault's own code is what does not work.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

from policies import replace_module
from reports.record import first_departing

from .. import search as search_module
from ..case import Case, Example
from ..check import check_property, off_simplest
from ..evidence.localise import localise
from ..evidence.minimise import minimise
from ..process import SHARED
from ..profiles import Profile
from ..properties import BY_NAME, PROPERTIES, Property
from ..search import quiet, see_shared, seed_of, tell
from ..trial import Replacer
from .bank import FAULTS, find_faults
from .fault import Fault, misfired
from .honest import HONEST
from .ledger import excuse
from .report import Alarm, CaseReport, Outcome, Status
from .sample import SAMPLED, draw, together, traits_of, traits_of_each

FIRST_LOOK = 6
"""Examples of each property before any of them is asked in depth; twice as many of the first."""
HARMLESS = 12
"""Examples on which a clean policy and, half as many, honest variants are judged by a property of share 1."""
CANARY = 8
"""Examples of each verdict on a faulty harness."""
SHRINKING = 60
"""Examples tried at most to make one simple."""
LEAST_SHARE = 0.01
"""Properties to which a profile gives a smaller share are too dear to be asked of every fault (compiling a model): only of those
that they are expected to notice."""
USUAL_ORDER = ("model equality", "layer equality", "cache", "contract")
"""Properties that notice most, first."""

Progress = Callable[[Outcome | Alarm], None]


class OutOfTime(Exception):
    """The exam's time is over in the middle of a fault, of which nothing is known then."""


@dataclass(frozen=True)
class Noticed:
    """A property that did not hold. ``shown``: it failed, instead of finding nothing to judge."""

    prop: Property
    example: Example
    problem: BaseException
    shown: bool


def examine(
    case: Case,
    *,
    faults: tuple[Fault, ...] = FAULTS,
    profile: Profile,
    seed: int,
    shrink: bool = False,
    honest: bool = True,
    replacer: Replacer = replace_module,
    progress: Progress = lambda _: None,
) -> CaseReport:
    """Try ``faults`` on ``case``, and the clean policy and honest variants beside them, in this process.

    ``shrink`` makes each example on which a fault was noticed as simple as it can be. ``progress`` is told of each
    outcome as it is known.
    """
    with quiet():
        see_shared(case)
    with quiet(), case.surroundings():
        exam = Exam(case, profile=profile, seed=seed, shrink=shrink, replacer=replacer)
        control = exam.harmless("clean policy", replacer, HARMLESS)
        progress(control)
        outcomes = []
        for fault in faults:
            outcome = exam.try_fault(fault)
            if outcome is not None:
                outcomes.append(outcome)
                progress(outcome)
        alarms = tuple(exam.honest(progress)) if honest else ()
    return CaseReport(
        case=case.name,
        outcomes=tuple(outcomes),
        control=(control, *exam.mistaken),
        honest=alarms,
        faults=len(faults),
    )


class Exam:
    """A case with its examples, its traits and the properties that apply to it.

    ``until`` is the moment of ``time.monotonic()`` from which on trying a fault raises ``OutOfTime``. ``aimed`` puts the
    examples on which a fault can matter first: it asks whether the fault can be seen, and not how soon it would be met.
    """

    def __init__(
        self,
        case: Case,
        *,
        profile: Profile,
        seed: int,
        shrink: bool,
        replacer: Replacer,
        until: float = math.inf,
        aimed: bool = False,
    ) -> None:
        self.case = case
        self.profile = profile
        self.seed = seed
        self.shrink = shrink
        self.replacer = replacer
        self.until = until
        self.aimed = aimed
        asked = sorted((prop for prop in PROPERTIES if prop.applies(case)), key=lambda prop: -prop.share)
        self.properties = tuple(prop for prop in asked if prop.share >= LEAST_SHARE)
        self.dear = tuple(asked[len(self.properties) :])
        self.examples = {prop: draw(case, self._most(prop), seed_of(seed, prop)) for prop in asked}
        self.sampled = draw(case, SAMPLED, seed)
        self.each = traits_of_each(case, self.sampled, replacer)
        self.traits = together(case, self.each)
        self.mistaken: list[Alarm] = []

    def try_fault(self, fault: Fault) -> Outcome | None:
        """What becomes of ``fault``, or None where it makes no sense here.

        A property that fails on the same example of the clean policy has noticed nothing: it is asked no more about
        this fault, and counted as a false alarm.
        """
        excused = excuse(fault.id, self.case.name)
        if not fault.applies(self.traits):
            gone = Outcome(fault=fault.id, case=self.case.name, status="stale", message="does not apply any more")
            return None if excused is None else gone
        if fault.seam == "harness":
            return self._try_harness(fault)
        while True:
            outcome, noticed = self._try_policy(fault, excused)
            if noticed is None or not self._fails_anyway(noticed):
                return outcome
            fault = dataclasses.replace(fault, passes=(*fault.passes, noticed.prop.name))

    def honest(self, progress: Progress) -> Iterator[Alarm]:
        """What the harness takes each honest variant for."""
        for variant in HONEST:
            if variant.applies(self.traits):
                with variant.opened(self.replacer) as rewritten, SHARED.as_it_is():
                    alarm = self.harmless(variant.id, rewritten, HARMLESS // 2, passes=variant.passes)
                progress(alarm)
                yield alarm

    def harmless(self, subject: str, replacer: Replacer, examples: int, *, passes: tuple[str, ...] = ()) -> Alarm:
        """Ask every property about something that computes the right function; nothing should be noticed."""
        start = time.perf_counter()
        count = [0]
        noticed = None
        for prop in (one for one in self.properties if one.name not in passes):
            take = self.examples[prop][: max(1, round(examples * prop.share))]
            found = self._look(prop, replacer, take, count)
            noticed = noticed or (found if found is not None and found.shown else None)
        return self._alarm(subject, noticed, count[0], start)

    def _try_policy(self, fault: Fault, excused: str | None) -> tuple[Outcome, Noticed | None]:
        start = time.perf_counter()
        count = [0]
        simplified = departs = None
        with fault.opened(self.replacer) as faulty:
            noticed = self._ask(fault, faulty, count, deep=excused is None)
            misfire = None if noticed is None else misfired(noticed.problem)
            if misfire is not None:
                noticed = None
            if noticed is not None and self.shrink and not noticed.prop.once:
                simplified = self._simplified(noticed, faulty)
                departs = self._departs(simplified, faulty)
        example = simplified or (None if noticed is None else noticed.example)
        outcome = Outcome(
            fault=fault.id,
            case=self.case.name,
            status=_status(noticed is not None, excused),
            killer=None if noticed is None else noticed.prop.name,
            examples=count[0],
            seconds=time.perf_counter() - start,
            message=misfire or ((excused or "") if noticed is None else _one_line(noticed.problem)),
            example=None if example is None else str(example),
            off_simplest=None if simplified is None else off_simplest(simplified, self.case.axes),
            places=() if simplified is None else self._places(fault, simplified),
            departs=departs,
        )
        return outcome, noticed

    def _fails_anyway(self, noticed: Noticed) -> bool:
        """Whether the policy without the fault fails in the same place."""
        start = time.perf_counter()
        alarm = self._look(noticed.prop, self.replacer, (noticed.example,), [0])
        if alarm is not None and alarm.shown:
            self.mistaken.append(self._alarm("clean policy", alarm, 1, start))
        return alarm is not None

    def _ask(self, fault: Fault, faulty: Replacer, count: list[int], *, deep: bool) -> Noticed | None:
        usual = (*self.properties, *(prop for prop in self.dear if prop.name in fault.expects))
        able = [prop for prop in usual if prop.name not in fault.passes]
        first = [BY_NAME[name] for name in (*fault.expects, *USUAL_ORDER) if name in BY_NAME]
        order = [prop for prop in dict.fromkeys((*first, *able)) if prop in able]
        few = {prop: self._few(prop, place == 0, prop.name in fault.expects) for place, prop in enumerate(order)}
        aim = self._aim(fault) if self.aimed else ()
        rounds = [(prop, slice(0, few[prop])) for prop in order]
        if deep:
            rounds += [(prop, slice(few[prop], self._depth(prop))) for prop in order]
        for prop, part in rounds:
            noticed = self._look(prop, faulty, (*aim, *self.examples[prop])[part], count)
            if noticed is not None:
                return noticed
        return None

    def _aim(self, fault: Fault) -> tuple[Example, ...]:
        """Examples on which ``fault`` can matter."""
        return tuple(one for one, traits in zip(self.sampled, self.each, strict=True) if fault.applies(traits))

    def _few(self, prop: Property, likeliest: bool, expected: bool) -> int:
        """Examples for a first look. The likeliest noticer is given its full chance even where a profile gives it few:
        whether a property can notice a fault is one question, how often a profile asks it another."""
        if prop.once:
            return 1
        if likeliest:
            return max(2 * FIRST_LOOK, self._depth(prop)) if expected else 2 * FIRST_LOOK
        return min(FIRST_LOOK, self._depth(prop))

    def _look(self, prop: Property, replacer: Replacer, examples: tuple[Example, ...], count: list[int]) -> Noticed | None:
        """Whether ``prop`` does not hold on one of ``examples``, in order."""
        for example in examples:
            if time.monotonic() > self.until:
                raise OutOfTime
            count[0] += 1
            fails, problem = tell(prop, self.case, replacer, example)
            if problem is not None:
                return Noticed(prop, example, problem, fails is True)
        return None

    def _most(self, prop: Property) -> int:
        return 1 if prop.once else max(2 * FIRST_LOOK, HARMLESS, self._depth(prop))

    def _depth(self, prop: Property) -> int:
        return 1 if prop.once else self.profile.examples_of(prop.share, self.case.effort, prop.least)

    def _simplified(self, noticed: Noticed, faulty: Replacer) -> Example:
        def fails(example: Example) -> bool | None:
            return tell(noticed.prop, self.case, faulty, example)[0]

        return minimise(noticed.example, self.case.axes, fails, budget=SHRINKING)

    def _departs(self, example: Example, faulty: Replacer) -> str | None:
        """The stage that localisation names. A fault may be such that no stages can be compared."""
        try:
            stage = first_departing(localise(self.case, example, faulty))
        except Exception:
            return None
        return None if stage is None else stage.name

    def _places(self, fault: Fault, example: Example) -> tuple[str, ...]:
        """Stages at which ``fault`` has to show first in the model of ``example``, by their names inside a layer."""
        anatomies = traits_of(self.case, (example,), self.replacer).anatomies
        return tuple(sorted(frozenset[str]().union(*map(fault.places, anatomies))))

    def _try_harness(self, fault: Fault) -> Outcome:
        start = time.perf_counter()
        count = [0]
        with fault.opened(self.replacer) as replacer, mock.patch.object(search_module, "_simplify"):
            killer, message = self._self_check(fault, replacer, count)
        return Outcome(
            fault=fault.id,
            case=self.case.name,
            status=_status(killer is not None, excuse(fault.id, self.case.name)),
            killer=killer,
            examples=count[0],
            seconds=time.perf_counter() - start,
            message=message,
        )

    def _self_check(self, fault: Fault, replacer: Replacer, count: list[int]) -> tuple[str | None, str]:
        """Whether a faulty harness gives itself away: a verdict other than "held", or a canary that it does not see."""
        equality = [BY_NAME[name] for name in ("model equality", "layer equality")]
        for prop in equality:
            outcome, reason = self._verdict(prop, replacer, count)
            if outcome != "held":
                return prop.name, f"{outcome}: {reason}"
        for canary in find_faults(fault.canaries) if fault.canaries else ():
            for prop in equality if canary.applies(self.traits) else ():
                with canary.opened(replacer) as faulty:
                    if self._verdict(prop, faulty, count)[0] == "held":
                        return "canary", f"{canary.id} is not noticed by {prop.name}"
        return None, ""

    def _verdict(self, prop: Property, replacer: Replacer, count: list[int]) -> tuple[str, str]:
        few = Profile("canary", round(CANARY * self.case.effort / prop.share))
        checked = check_property(prop, self.case, profile=few, seed=self.seed, policy="", replacer=replacer, explain=False)
        count[0] += checked.verdict.examples
        return checked.verdict.outcome, checked.verdict.reason

    def _alarm(self, subject: str, noticed: Noticed | None, examples: int, start: float) -> Alarm:
        return Alarm(
            subject=subject,
            case=self.case.name,
            examples=examples,
            seconds=time.perf_counter() - start,
            property=None if noticed is None else noticed.prop.name,
            message="" if noticed is None else _one_line(noticed.problem),
            example=None if noticed is None else str(noticed.example),
        )


def _status(noticed: bool, excused: str | None) -> Status:
    if noticed:
        return "killed" if excused is None else "stale"
    return "survived" if excused is None else "excused"


def _one_line(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return text[0][:300] if text else type(problem).__name__
