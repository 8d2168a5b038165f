"""One case's exam: every fault that fits is tried until a property notices it.

The same examples serve all faults, drawn once from the case's strategy. Properties are asked in two rounds: a first look
of a few examples each, the likeliest noticer first, then each to the depth of the profile. Examples are counted over all
properties, so a fault that only the tenth property notices pays for the nine before it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed

from policies import replace_module

from ..case import Case, Example
from ..check import check_property, off_simplest
from ..profiles import Profile
from ..properties import BY_NAME, PROPERTIES, Property
from ..search import Found, judge, quiet
from ..trial import Replacer
from .bank import FAULTS, find_faults
from .fault import Fault, Traits, unharmed
from .honest import HONEST
from .ledger import excuse
from .report import Alarm, CaseReport, Outcome

FIRST_LOOK = 6
"""Examples of each property before any of them is asked in depth."""
HARMLESS = 12
"""Examples on which a clean policy and, half as many, honest variants are judged by a property of share 1."""
CANARY = 8
"""Examples of each verdict on a faulty harness."""
SAMPLED = 48
"""Random models from which a case's traits are read."""
LEAST_SHARE = 0.01
"""Properties to which a profile gives a smaller share are too dear to be asked of every fault (compiling a model)."""
USUAL_ORDER = ("model equality", "layer equality", "cache", "contract")
"""Properties that notice most, first."""


@dataclass(frozen=True)
class Noticed:
    """A property that did not hold, on the ``examples``-th example of all that were run."""

    prop: Property
    example: Example
    problem: BaseException


def examine(
    case: Case,
    *,
    faults: tuple[Fault, ...] = FAULTS,
    profile: Profile,
    seed: int,
    shrink: bool = False,
    honest: bool = True,
    replacer: Replacer = replace_module,
    progress: Callable[[Outcome | Alarm], None] = lambda _: None,
) -> CaseReport:
    """Try ``faults`` on ``case``, and the clean policy and honest variants beside them, in this process.

    ``shrink`` makes each example on which a fault was noticed as simple as it can be. ``progress`` is told of each
    outcome as it is known.
    """
    with quiet(), case.surroundings():
        exam = Exam(case, profile=profile, seed=seed, shrink=shrink, replacer=replacer)
        control = exam.harmless("clean policy", replacer, share=1.0)
        progress(control)
        outcomes = []
        for fault in faults:
            outcome = exam.try_fault(fault)
            if outcome is not None:
                outcomes.append(outcome)
                progress(outcome)
        alarms = []
        for variant in HONEST if honest else ():
            if variant.applies(exam.traits):
                with variant.inject(replacer) as rewritten:
                    alarms.append(exam.harmless(variant.id, rewritten, share=0.5, passes=variant.passes))
                progress(alarms[-1])
    return CaseReport(
        case=case.name,
        outcomes=tuple(outcomes),
        control=(control, *exam.mistaken),
        honest=tuple(alarms),
        faults=len(faults),
    )


class Exam:
    """A case with its examples, its traits and the properties that apply to it."""

    def __init__(self, case: Case, *, profile: Profile, seed: int, shrink: bool, replacer: Replacer) -> None:
        self.case = case
        self.profile = profile
        self.seed = seed
        self.shrink = shrink
        self.replacer = replacer
        asked = [prop for prop in PROPERTIES if prop.applies(case) and prop.share >= LEAST_SHARE]
        self.properties = tuple(sorted(asked, key=lambda prop: -prop.share))
        self.mistaken: list[Alarm] = []
        deepest = max(map(self._depth, self.properties))
        self.examples = draw(case, max(deepest, SAMPLED), seed)
        self.traits = traits_of(case, self.examples[:SAMPLED], replacer)

    def try_fault(self, fault: Fault) -> Outcome | None:
        """What becomes of ``fault``, or None where it makes no sense here.

        A property that fails on the same example of the clean policy has noticed nothing: it is asked no more, and
        counted as a false alarm.
        """
        while True:
            outcome, noticed = self._try(fault)
            if noticed is None or not self._fails_anyway(fault, noticed):
                return outcome
            if fault.baseline is not None:
                fault = dataclasses.replace(fault, passes=(*fault.passes, noticed.prop.name))
                continue
            self.properties = tuple(prop for prop in self.properties if prop is not noticed.prop)

    def _fails_anyway(self, fault: Fault, noticed: Noticed) -> bool:
        start = time.perf_counter()
        with (fault.baseline or unharmed)(self.replacer) as clean:
            alarm = self._look(noticed.prop, clean, (noticed.example,), [0])
        if alarm is not None and fault.baseline is None:
            self.mistaken.append(self._alarm("clean policy", alarm, 1, start))
        return alarm is not None

    def _try(self, fault: Fault) -> tuple[Outcome | None, Noticed | None]:
        excused = excuse(fault.id, self.case.name)
        if not fault.applies(self.traits):
            gone = Outcome(fault=fault.id, case=self.case.name, status="stale", message="does not apply any more")
            return None if excused is None else gone, None
        start = time.perf_counter()
        count = [0]
        with fault.inject(self.replacer) as faulty:
            if fault.seam == "harness":
                killer, message = self._self_check(fault, faulty, count)
                noticed = None
            else:
                noticed = self._ask(fault, faulty, count, deep=excused is None)
                killer = None if noticed is None else noticed.prop.name
                message = "" if noticed is None else _one_line(noticed.problem)
                if noticed is not None and self.shrink:
                    noticed = self._simplified(noticed, faulty)
        example = None if noticed is None else noticed.example
        if killer is None:
            status = "survived" if excused is None else "excused"
        else:
            status = "killed" if excused is None else "stale"
        outcome = Outcome(
            fault=fault.id,
            case=self.case.name,
            status=status,
            killer=killer,
            examples=count[0],
            seconds=time.perf_counter() - start,
            message=message or excused or "",
            example=None if example is None else str(example),
            off_simplest=off_simplest(example, self.case.axes) if example is not None and self.shrink else None,
        )
        return outcome, noticed

    def harmless(self, subject: str, replacer: Replacer, *, share: float, passes: tuple[str, ...] = ()) -> Alarm:
        """Ask every property about something that computes the right function; nothing should be noticed."""
        start = time.perf_counter()
        count = [0]
        noticed = None
        for prop in (one for one in self.properties if one.name not in passes):
            take = max(1, round(HARMLESS * prop.share * share))
            noticed = noticed or self._look(prop, replacer, self.examples[:take], count)
        return self._alarm(subject, noticed, count[0], start)

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

    def _ask(self, fault: Fault, faulty: Replacer, count: list[int], *, deep: bool) -> Noticed | None:
        first = [BY_NAME[name] for name in (*fault.expects, *USUAL_ORDER) if name in BY_NAME]
        able = [prop for prop in self.properties if prop.name not in fault.passes]
        order = [prop for prop in dict.fromkeys((*first, *able)) if prop in able]
        few = {prop: min(2 * FIRST_LOOK if place == 0 else FIRST_LOOK, self._depth(prop)) for place, prop in enumerate(order)}
        for prop in order:
            noticed = self._look(prop, faulty, self.examples[: few[prop]], count)
            if noticed is not None:
                return noticed
        for prop in order if deep else ():
            noticed = self._look(prop, faulty, self.examples[few[prop] : self._depth(prop)], count)
            if noticed is not None:
                return noticed
        return None

    def _look(
        self, prop: Property, replacer: Replacer, examples: tuple[Example, ...], count: list[int]
    ) -> Noticed | None:
        """Whether ``prop`` fails on one of ``examples``, in order."""
        for example in examples:
            count[0] += 1
            try:
                judge(prop, self.case, replacer, example, Found())
            except Exception as problem:
                return Noticed(prop, example, problem)
        return None

    def _depth(self, prop: Property) -> int:
        return 1 if prop.once else self.profile.examples_of(prop.share, self.case.effort)

    def _simplified(self, noticed: Noticed, faulty: Replacer) -> Noticed:
        """Set every axis to its simplest value with which the property still fails, until nothing more can be set."""
        settled = False
        while not settled:
            settled = True
            for axis in self.case.axes:
                if noticed.example[axis.name] == axis.simplest:
                    continue
                simpler = noticed.example.with_value(axis.name, axis.simplest)
                still = self._look(noticed.prop, faulty, (simpler,), [0])
                if still is not None:
                    noticed, settled = still, False
        return noticed

    def _self_check(self, fault: Fault, replacer: Replacer, count: list[int]) -> tuple[str | None, str]:
        """Whether a faulty harness gives itself away: a verdict other than "held", or a canary that it does not see."""
        equality = [BY_NAME[name] for name in ("model equality", "layer equality")]
        for prop in equality:
            outcome, reason = self._verdict(prop, replacer, count)
            if outcome != "held":
                return prop.name, f"{outcome}: {reason}"
        for canary in find_faults(fault.canaries) if fault.canaries else ():
            for prop in equality if canary.applies(self.traits) else ():
                with canary.inject(replacer) as faulty:
                    if self._verdict(prop, faulty, count)[0] == "held":
                        return "canary", f"{canary.id} is not noticed by {prop.name}"
        return None, ""

    def _verdict(self, prop: Property, replacer: Replacer, count: list[int]) -> tuple[str, str]:
        few = Profile("canary", round(CANARY * self.case.effort / prop.share))
        case = type(self.case)()
        verdict = check_property(prop, case, profile=few, seed=self.seed, policy="", replacer=replacer).verdict
        count[0] += verdict.examples
        return verdict.outcome, verdict.reason


def draw(case: Case, number: int, seed: int) -> tuple[Example, ...]:
    """``number`` random examples of ``case``, or all that there are."""
    drawn: list[Example] = []

    @with_seed(seed)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case.strategy)
    def take(example: Example) -> None:
        drawn.append(example)

    take()
    return tuple(drawn)


def traits_of(case: Case, examples: tuple[Example, ...], replacer: Replacer) -> Traits:
    """The descriptions of the layers in the models of ``examples``, as clean policies read them."""
    policies, layers, anatomies, calls = set(), [], [], []
    for example in examples:
        model = case.build(example)
        for one in replacer(model).replaced:
            policies.add(one.policy)
            layer = model.get_submodule(one.path)
            layers.append(layer)
            state = getattr(layer, "fused", None)
            if state is not None and hasattr(state, "core"):
                anatomies.append(state.core.anatomy)
                calls.append(state.policy.call)
    return Traits(
        case=case,
        policies=frozenset(policies),
        layers=tuple(layers),
        anatomies=tuple(anatomies),
        calls=tuple(dict.fromkeys(calls)),
    )


def _one_line(problem: BaseException) -> str:
    text = str(problem).strip().splitlines()
    return text[0][:300] if text else type(problem).__name__
