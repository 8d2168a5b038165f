"""Commands that do something: check, bench, run."""

from __future__ import annotations

import random
import shlex
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from reports import storage
from reports.record import Run, now
from reports.wording import count

from ..interrupts import INTERRUPTED
from ..journal import Journal, Order
from ..pool import begin
from ..registry import CaseEntry, choose
from ..run import new_folder
from ..run import perform as perform_run
from . import options
from .output import print_json
from .pages import write_page
from .progress import Reporter

CHECK_BUDGET, QUICK_BUDGET = 540.0, 25.0
"""Seconds for timing: a full bench stays below ten minutes, a quick run below one."""


def check(
    ctx: typer.Context,
    cases: options.Cases = None,
    profile: options.Profile = "regression",
    examples: options.Examples = None,
    properties: options.Properties = None,
    plan: options.Execution = "auto",
    device: options.Device = "cpu",
    seed: options.NightlySeed = None,
    out: options.Out = None,
    resume: options.Resume = None,
    workers: options.Workers = None,
    json: options.Json = False,
) -> int:
    """Check that replaced layers compute the same function as the originals, on random tiny models."""
    from policies.plans import settle

    settle(plan)
    entries = options.chosen(ctx, cases)
    named = _applying(properties, entries) if properties else ()
    journal = _journal(
        ctx, entries, seed, out, resume,
        check=True, profile=profile, examples=examples, properties=named, execution=plan, device=device,
    )  # fmt: skip
    return _perform(ctx, journal, workers=workers, json=json)


def _applying(properties: list[str], entries: tuple[CaseEntry, ...]) -> tuple[str, ...]:
    """The names of these properties. Raises one line where one of them applies to none of the cases."""
    from ..properties import choose_properties

    named = choose_properties(properties)
    for one in named:
        if not any(one.applies(entry.load()) for entry in entries if entry.unavailable is None):
            raise typer.BadParameter(f"{one.name} makes no sense for {', '.join(entry.name for entry in entries)}")
    return tuple(one.name for one in named)


def bench(
    ctx: typer.Context,
    cases: options.Cases = None,
    device: options.Device = "cpu",
    budget: options.Budget = CHECK_BUDGET,
    seed: options.Seed = None,
    out: options.Out = None,
    resume: options.Resume = None,
    list_only: Annotated[bool, typer.Option("--list", help="Show what would be timed, and stop.")] = False,
    json: options.Json = False,
) -> int:
    """Time replaced against original layers at published dimensions, in interleaved pairs."""
    entries = options.chosen(ctx, cases)
    if list_only:
        return _list_jobs(entries, device, budget, json=json)
    journal = _journal(ctx, entries, seed, out, resume, bench=True, profile="bench", device=device, budget=budget)
    return _perform(ctx, journal, json=json)


def run(
    ctx: typer.Context,
    cases: options.Cases = None,
    profile: options.Profile = "regression",
    device: options.Timed = "cpu",
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that timing may take (quick: 25, else 540).", min=1.0, metavar="SECONDS"),
    ] = None,
    seed: options.NightlySeed = None,
    out: options.Out = None,
    resume: options.Resume = None,
    workers: options.Workers = None,
    json: options.Json = False,
) -> int:
    """Check, then time, then write the report: the main job."""
    seconds = budget if budget is not None else QUICK_BUDGET if profile == "quick" else CHECK_BUDGET
    entries = options.chosen(ctx, cases)
    journal = _journal(ctx, entries, seed, out, resume, check=True, bench=True, profile=profile, device=device, budget=seconds)
    return _perform(ctx, journal, workers=workers, json=json)


def _journal(
    ctx: typer.Context,
    entries: tuple[CaseEntry, ...],
    seed: int | None,
    out: Path | None,
    resume: Path | None,
    *,
    device: str,
    profile: str,
    check: bool = False,
    **asked: Any,
) -> Journal:
    """The journal of a new run, of which ``asked`` is what else it is to do, or of the one in ``resume``."""
    if resume is not None:
        options.see_nothing_else(ctx, "resume", "workers", "json")
        journal = Journal.resume(resume)
        options.see_device(journal.order.device)
        return journal
    options.see_device(device)
    if check:
        options.see_profile(profile)
    created = now()
    if seed is None:
        seed = random.SystemRandom().randrange(2**31) if profile == "nightly" else 0
    order = Order(
        id=uuid.uuid4().hex,
        created=created,
        command=shlex.join(["harness", *sys.argv[1:]]),
        profile=profile,
        seed=seed,
        cases=tuple(entry.name for entry in entries),
        check=check,
        device=device,
        **asked,
    )
    return Journal.start(out or new_folder(created, seed), order)


def _perform(ctx: typer.Context, journal: Journal, *, workers: int | None = None, json: bool) -> int:
    from reports import terminal

    entries = choose(ctx.find_root().obj, journal.order.cases)
    if journal.order.check:
        begin()  # before this process imports what takes seconds too
    with Reporter() as reporter:
        reporter.say(f"run {journal.folder}, profile {journal.order.profile}, seed {journal.order.seed}")
        if journal.done:
            reporter.say(f"going on with what was begun by: {journal.order.command}")
        try:
            finished = perform_run(journal, entries, reporter, workers=workers)
        except KeyboardInterrupt:
            journal.close()
            reporter.say(
                f"what is done is kept: harness {journal.order.verb} --resume {shlex.quote(str(journal.folder))} goes on"
            )
            return INTERRUPTED
    page = write_page(finished, journal.folder)
    if json:
        sys.stdout.write((journal.folder / storage.RECORD_NAME).read_text())
    else:
        place = str(journal.folder)
        terminal.show(Console(), terminal.render_terminal(finished, place), terminal.run_lines(finished, place))
        print(f"report: {page}")
    unmet = _unmet(finished, journal.order)
    for reason in unmet:
        print(reason, file=sys.stderr)
    return 0 if finished.ok and not unmet else 1


def _unmet(run: Run, order: Order) -> list[str]:
    """What a nightly run of full depth should have reached and has not, one sentence a case."""
    from ..coverage import coverage_failure

    if order.profile != "nightly" or order.examples is not None or order.properties:
        return []
    return [reason for one in run.coverage if (reason := coverage_failure(one)) is not None]


def _list_jobs(entries: tuple[CaseEntry, ...], kind: str, budget: float, *, json: bool) -> int:
    from rich.table import Table

    from ..bench.jobs import DTYPES, plan_jobs
    from ..bench.rates import measure_rates
    from ..timing.opening import open_device

    device = open_device(kind)
    rates = measure_rates(device, DTYPES[kind])
    entries = tuple(entry for entry in entries if entry.unavailable is None)
    plan = plan_jobs(entries, device=kind, budget=budget, rates=rates, free_bytes=device.free_bytes())
    if json:
        rows = [{"key": job.key, "seconds": plan.cost(job)} for job in plan.jobs]
        left = [{"key": job.key, "reason": reason} for job, reason in plan.left_out]
        print_json({"seconds": plan.estimate, "rows": rows, "left_out": left})
        return 0
    table = Table("what", "estimated seconds", box=None)
    for job in plan.jobs:
        table.add_row(job.key, f"{plan.cost(job):.1f}")
    for job, reason in plan.left_out:
        table.add_row(job.key, f"left out: {reason}")
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    over = f", more than --budget {budget:g}: one is always timed" if plan.estimate > budget else ""
    print(f"{count(len(plan.jobs), 'row')} in about {plan.estimate:.0f} s, {len(plan.left_out)} left out{over}")
    return 0
