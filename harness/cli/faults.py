"""The command that examines the harness itself: faults."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reports.wording import count

from ..faults.report import judged, killed, median_examples
from ..interrupts import INTERRUPTED
from ..pool import begin
from ..profiles import PROFILES
from . import options
from .output import print_json

if TYPE_CHECKING:
    from ..faults import CaseReport, FaultReport
    from ..registry import CaseEntry


def faults(
    ctx: typer.Context,
    cases: options.Cases = None,
    fault: Annotated[list[str] | None, typer.Option(help="Only this fault or row (F41, M10 ...).", metavar="ID")] = None,
    profile: options.Profile = "regression",
    plan: options.Execution = "auto",
    seed: options.Seed = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Make each killing example as simple as it can be, and locate the fault in it.")
    ] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="List the faults (those that fit any CASE named) and their sources, and stop.")
    ] = False,
    workers: options.Workers = None,
    json: options.Json = False,
) -> int:
    """Seed known faults into every policy they fit and count those noticed; honest rewrites must pass."""
    from policies.plans import settle

    settle(plan)
    chosen = options.chosen(ctx, cases)
    if fault and (cases or not listing):
        _see_fitting(tuple(fault), chosen, plan)
    if listing:
        return _list(tuple(fault or ()), chosen if cases else (), plan, json=json)
    options.see_profile(profile)
    begin()  # before this process imports what takes seconds too
    from ..faults import run_faults

    console = Console(stderr=True, highlight=False)

    def tell(part: CaseReport) -> None:
        console.print(f"{part.case}: {len(killed(part.outcomes))} of {len(judged(part.outcomes))} faults noticed in this part")

    if not fault:
        names = ", ".join(entry.name for entry in chosen)
        console.print(
            f"all faults on {names}: a case takes two to five minutes on two cores, and is told of in three parts", soft_wrap=True
        )
    with console.status("examining"):
        report = run_faults(
            chosen,
            faults=tuple(fault or ()),
            profile=PROFILES[profile],
            plan=plan,
            seed=seed or 0,
            shrink=shrink,
            workers=workers,
            progress=tell,
        )
    if json:
        sys.stdout.write(report.to_json().decode() + "\n")
    else:
        _show(report, Console(highlight=False))
    if report.interrupted:
        return INTERRUPTED
    return 0 if report.passed else 1


def _see_fitting(names: tuple[str, ...], entries: tuple[CaseEntry, ...], plan: str) -> None:
    """Raises one line where none of the faults of these names can matter in any of the cases."""
    from ..faults.bank import find_faults
    from ..faults.sample import fitting

    if not fitting(find_faults(names), entries, plan):
        raise typer.BadParameter(f"{', '.join(names)} can matter in no model of {', '.join(one.name for one in entries)}")


def _show(report: FaultReport, console: Console) -> None:
    table = Table("case", "noticed", "excused", "median examples", "seconds", "honest variants", box=None)
    for case in report.cases:
        examples = median_examples(case.outcomes)
        alarms = sum(one.property is not None for one in case.honest)
        table.add_row(
            case.case,
            f"{len(killed(case.outcomes))} of {len(judged(case.outcomes))}",
            str(sum(one.status == "excused" for one in case.outcomes)),
            "–" if examples is None else f"{examples:g}",
            f"{sum(one.seconds for one in case.outcomes):.0f}",
            f"{len(case.honest)}, {count(alarms, 'alarm')}",
        )
    console.print(table)
    for one in report.survivors:
        why = f": {one.message}" if one.message else ""
        console.print(f"[bold red]survived[/] {escape(one.fault)} on {one.case}{escape(why)}")
    for one in report.stale:
        console.print(f"[bold red]stale ledger entry[/] {escape(one.fault)} on {one.case}: {escape(one.message)}")
    for alarm in report.false_alarms:
        console.print(f"[bold red]false alarm[/] {escape(alarm.subject)} on {alarm.case}: {escape(alarm.message)}")
    for problem in report.problems:
        console.print(f"[bold red]not examined[/] {escape(problem)}")
    if report.interrupted:
        console.print("[bold red]broken off[/]: what is not counted here was not tried")
    axes = "" if report.median_off_simplest is None else f", median {report.median_off_simplest:g} axes off simplest"
    for one in report.placed:
        if not one.located:
            console.print(
                f"[yellow]not located[/] {escape(one.fault)} on {one.case}: {escape(one.departs or 'no stage departs')}"
            )
    located = "" if report.located_rate is None else f", {report.located_rate:.0%} of {len(report.placed)} located"
    print(
        f"{len(report.killed)} of {count(len(report.judged), 'pair')} noticed ({report.kill_rate:.1%}), "
        f"{count(report.faults, 'fault')}, examples needed: {report.median_examples or 0:g} at the median{axes}{located}, "
        f"{count(len(report.false_alarms), 'false alarm')}, "
        f"{report.seconds:.0f} s, seed {report.seed}"
    )


def _list(names: tuple[str, ...], entries: tuple[CaseEntry, ...], plan: str, *, json: bool) -> int:
    from ..faults.bank import find_faults
    from ..faults.meaningless import MEANINGLESS

    known = find_faults(names)
    if entries:
        from ..faults.sample import fitting

        known = fitting(known, entries, plan)
    meaningless = {} if names or entries else MEANINGLESS
    if json:
        listed = [{"id": one.id, "rows": one.rows, "source": one.source, "breaks": one.breaks} for one in known]
        left = [{"row": row, "no_meaning_here": why} for row, why in meaningless.items()]
        print_json({"faults": listed, "left": left})
        return 0
    for one in known:
        print(one.id, one.source, one.breaks, sep="\t")
    for row, why in meaningless.items():
        print(row, "no meaning here", why, sep="\t")
    return 0
