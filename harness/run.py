"""One run, from the names of cases to the record on disk: check, time, write; at any moment resumable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from policies.plans import CAPTURED, Plan
from reports.record import WRONG, Coverage, Environment, NullLane, Run, Verdict
from reports.storage import RUNS, write

from .environment import fingerprint
from .interrupts import heed
from .journal import Begun, CeilingsDone, CheckDone, Contents, Journal, Order, TimingDone, TimingsPlanned, read
from .profiles import depth
from .registry import CaseEntry, choose
from .timing.light import best, held_against
from .watcher import Watcher

BYTES_A_WORKER = 2**32
"""Memory of a GPU that a checking process is given. Its context and libraries take half a GiB, the largest layers in float64
the most of the rest."""


def perform(journal: Journal, entries: tuple[CaseEntry, ...], watcher: Watcher, *, workers: int | None = None) -> Run:
    """Do what is left of a run, which is of the cases ``entries``, and write its record. On interruption what is done is in the
    journal."""
    emulated = _emulated(journal.order)
    for line in emulated:
        watcher.say(line)
    if _environment(journal.contents) is None:
        journal.append(Begun(environment=fingerprint(*emulated)))
    if journal.order.check:
        _check(journal, entries, watcher, workers)
    if journal.order.bench:
        _bench(journal, entries, watcher)
    run = _record(journal.contents, entries, complete=True)
    write(run, journal.folder)
    journal.remove()
    return run


def _emulated(order: Order) -> tuple[str, ...]:
    """What a reader has to know of a plan that is for a GPU, in one sentence, where there is none."""
    if not order.check or order.device != "cpu" or Plan(order.execution) not in CAPTURED:
        return ()
    return (f"Plan {order.execution} on a CPU: calls were captured and replayed by an emulator of CUDA graphs.",)


def _check(journal: Journal, entries: tuple[CaseEntry, ...], watcher: Watcher, workers: int | None) -> None:
    from .properties import choose_properties
    from .workers import Task, run_tasks

    done = {(one.verdict.case, one.verdict.property) for one in journal.done if isinstance(one, CheckDone)}
    order = journal.order
    device = "cpu" if order.bench else order.device  # a GPU takes many times as long for an example: launches, not arithmetic
    profile = depth(order.profile, order.examples)
    tasks = []
    for entry in entries:
        if entry.unavailable is not None:
            if not any(case == entry.name for case, _ in done):
                journal.append(CheckDone(verdict=_unavailable(entry, order.seed)))
            continue
        case = entry.load()
        tasks += [
            Task(entry, prop.name, profile, order.seed, order.execution, device)
            for prop in choose_properties(order.properties)
            if prop.applies(case) and (entry.name, prop.name) not in done
        ]
    heed()
    watcher.begin("checks", len(tasks))
    for _, checked in run_tasks(tasks, workers=workers or processes_on(device)):
        journal.append(
            CheckDone(
                verdict=checked.verdict,
                drawn=[(axis, value, count) for (axis, value), count in sorted(checked.drawn.items(), key=str)],
                pairs=sorted(checked.pairs, key=str),
                budget=checked.budget,
            )
        )
        watcher.verdict(checked.verdict)


def processes_on(device: str) -> int:
    """How many check at a time: one a core, as far as the memory of a GPU goes."""
    from .pool import cores
    from .timing.opening import open_device

    return cores() if device == "cpu" else max(1, min(cores(), open_device(device).free_bytes() // BYTES_A_WORKER))


def _unavailable(entry: CaseEntry, seed: int) -> Verdict:
    return Verdict.without_examples(
        case=entry.name,
        policy=entry.policy_class,
        property="available",
        statement="What the case needs is installed.",
        outcome="unavailable",
        reason=entry.unavailable or "",
        seed=seed,
    )


def _bench(journal: Journal, entries: tuple[CaseEntry, ...], watcher: Watcher) -> None:
    from .bench.jobs import DTYPES, plan_jobs
    from .bench.rates import measure_rates
    from .bench.rows import not_timed, time_job, warm_call
    from .timing.ceilings import measure_ceilings
    from .timing.null_lane import null_lane
    from .timing.opening import open_device

    heed()
    order = journal.order
    here = [entry for entry in entries if entry.unavailable is None]
    device = open_device(order.device)
    begun = next((one for one in journal.done if isinstance(one, TimingsPlanned)), None)
    rates = begun.rates if begun else measure_rates(device, DTYPES[order.device])
    keys = begun.keys if begun else None
    plan = plan_jobs(here, device=order.device, budget=order.budget, rates=rates, free_bytes=device.free_bytes(), keys=keys)
    if begun is None:
        journal.append(TimingsPlanned(rates=rates, keys=tuple(job.key for job in plan.jobs)))
    done = {one.key for one in journal.done if isinstance(one, TimingDone)}
    wrong = {one.verdict.case for one in journal.done if isinstance(one, CheckDone) and one.verdict.outcome in WRONG}
    jobs = [job for job in plan.jobs if job.key not in done]
    if plan.left_out:
        reasons = Counter(reason for _, reason in plan.left_out)
        watcher.say("not timed: " + "; ".join(f"{count} rows, {reason}" for reason, count in reasons.items()))
    if not jobs:
        return
    watcher.begin("timings", len(jobs))
    lane = null_lane([warm_call(device)], device=device, comparisons=3, budget_seconds=plan.seconds_a_pair, seed=order.seed)
    journal.append(CeilingsDone(light=measure_ceilings(device), null_lane=lane.record()))
    for job in jobs:
        if job.entry.name in wrong:
            # Equality is a gate: a policy that failed a check is not worth a time.
            rows = not_timed(job, device, "a check of this case failed")
        else:
            rows = time_job(job, device=device, seconds_a_pair=plan.pair_seconds(job), seed=order.seed)
        journal.append(TimingDone(key=job.key, timings=rows))
        watcher.timed(rows)
    journal.append(CeilingsDone(light=measure_ceilings(device)))


def so_far(folder: Path, known: tuple[CaseEntry, ...]) -> Run:
    """What the unfinished run in ``folder`` has found. Raises ``JournalError``, and ``UnknownCase`` where it is about a case
    that is not ``known``."""
    contents = read(folder)
    return _record(contents, choose(known, contents.order.cases), complete=False)


def _record(contents: Contents, entries: tuple[CaseEntry, ...], *, complete: bool) -> Run:
    from .properties import PROPERTIES

    order = contents.order
    cases = {entry.name: place for place, entry in enumerate(entries)}
    asked = {prop.name: place for place, prop in enumerate(PROPERTIES)}
    checks = sorted(
        (one for one in contents.done if isinstance(one, CheckDone)),
        key=lambda one: (cases.get(one.verdict.case, len(cases)), asked.get(one.verdict.property, len(asked))),
    )
    measured = [one for one in contents.done if isinstance(one, CeilingsDone)]
    light = best([one.light for one in measured]) if measured else None
    rows = [row for one in contents.done if isinstance(one, TimingDone) for row in one.timings]
    lanes = [one.null_lane for one in measured if one.null_lane is not None]
    return Run(
        id=order.id,
        created=order.created,
        command=order.command,
        profile=order.profile,
        seed=order.seed,
        complete=complete,
        seconds=contents.seconds,
        environment=_environment(contents) or fingerprint(),
        verdicts=tuple(one.verdict for one in checks),
        coverage=tuple(_coverage(entries, checks)) if order.check else (),
        budgets=tuple(one.budget for one in checks if one.budget is not None),
        timings=tuple(held_against(light, row) for row in rows) if light else (),
        ceilings=(light.record(),) if light else (),
        null_lane=_whole_lane(lanes),
    )


def _whole_lane(lanes: list[NullLane]) -> NullLane | None:
    """What a run that was taken up again has shown of its timing, all times together."""
    if not lanes:
        return None
    effects = [one.smallest_effect for one in lanes if one.smallest_effect is not None]
    return NullLane(
        comparisons=sum(one.comparisons for one in lanes),
        alarms=sum(one.alarms for one in lanes),
        smallest_effect=max(effects, default=None),
    )


def _environment(contents: Contents) -> Environment | None:
    return next((one.environment for one in contents.done if isinstance(one, Begun)), None)


def _coverage(entries: tuple[CaseEntry, ...], checks: list[CheckDone]) -> list[Coverage]:
    from .check import Checked
    from .coverage import coverage

    found = []
    for entry in entries:
        mine = [one for one in checks if one.verdict.case == entry.name and one.verdict.outcome != "unavailable"]
        if mine:
            checked = [
                Checked(one.verdict, Counter({(a, v): n for a, v, n in one.drawn}), frozenset(map(tuple, one.pairs)))
                for one in mine
            ]
            found.append(coverage(entry.load(), checked))
    return found


def new_folder(created: str, seed: int) -> Path:
    """A folder for a new run, named by time and seed, where runs are looked for by their ids."""
    stamp = created.replace(":", "").replace("-", "")[:15]
    return RUNS / f"{stamp}-{seed}"
