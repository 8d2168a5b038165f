"""Commands that tell what is here: list, doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..registry import CaseEntry
from . import options
from .output import print_json


def list_cases(
    ctx: typer.Context,
    cases: options.Cases = None,
    properties: Annotated[bool, typer.Option("--properties", help="List what a check asks instead.")] = False,
    json: options.Json = False,
) -> int:
    """List policies and cases: what each matches, and whether it can run here."""
    if properties:
        return _list_properties(options.chosen(ctx, cases), json=json)
    rows = [_row(entry) for entry in options.chosen(ctx, cases)]
    if json:
        print_json({"cases": rows})
        return 0
    console = Console()
    table = Table(box=None)
    for name in ("case", "policy", "replaces", "here"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row["case"], row["policy"], ", ".join(row["replaces"]), row["unavailable"] or "available")
    if console.is_terminal:
        console.print(table)
    else:
        for row in rows:
            print(row["case"], row["policy"], ",".join(row["replaces"]), row["unavailable"] or "available", sep="\t")
    return 0


def _list_properties(entries: tuple[CaseEntry, ...], *, json: bool) -> int:
    """Those that apply to any of the cases."""
    from ..properties import PROPERTIES

    here = [entry.load() for entry in entries if entry.unavailable is None]
    found = [prop for prop in PROPERTIES if any(map(prop.applies, here))]
    if json:
        print_json({"properties": [{"name": one.name, "statement": one.statement} for one in found]})
        return 0
    for one in found:
        print(one.name, one.statement, sep="\t")
    return 0


def _row(entry: CaseEntry) -> dict[str, Any]:
    policy = entry.policy_entry.load()
    return {
        "case": entry.name,
        "policy": policy.__name__,
        "replaces": [path.replace(":", ".") for path in policy.layer_classes],
        "library": entry.policy_entry.distribution,
        "available": entry.unavailable is None,
        "unavailable": entry.unavailable,
    }


def doctor(
    ctx: typer.Context,
    json: options.Json = False,
    timing: Annotated[
        bool, typer.Option("--timing", help="Test this machine's timing: A/A alarms and power; some ten minutes.")
    ] = False,
    device: options.Device = "cpu",
    limit: Annotated[float, typer.Option(help="Seconds that --timing may take.", min=10.0, metavar="SECONDS")] = float("inf"),
) -> int:
    """Tell versions and devices, and what cannot be measured here."""
    if timing:
        return _timing(device, limit, json=json)
    if {"device", "limit"} & {*options.said(ctx)}:
        raise typer.BadParameter("--device and --limit say how --timing is done; add --timing")
    from ..environment import fingerprint
    from ..timing.devices import DeviceUnavailable
    from ..timing.opening import open_device

    found = fingerprint()
    notes = [*found.notes, *open_device("cpu").unavailable]
    try:
        notes += open_device("cuda").unavailable
    except DeviceUnavailable as why:
        notes.append(str(why))
    if json:
        print_json({"environment": found, "notes": notes})
        return 0
    print(f"{found.cpu}, {found.cores} cores, {found.memory_bytes / 2**30:.0f} GiB, Python {found.python}")
    print(f"accelerator: {found.accelerator.name if found.accelerator else 'none'}")
    for name, version in found.packages.items():
        print(f"{name} {version}")
    for note in notes:
        print(f"note: {note}")
    return 0


def _timing(kind: str, limit: float, *, json: bool) -> int:
    """Exit status 1 where equal calls were called different more often than they may be."""
    from ..timing.opening import open_device
    from ..timing.selftest import selftest

    console = Console(stderr=True, highlight=False)
    with console.status("timing equal calls against each other") as status:

        def told(done: int, planned: int) -> None:
            status.update(f"comparison {done} of {planned}")
            if not console.is_terminal and done * 10 // planned > (done - 1) * 10 // planned:
                console.print(f"comparison {done} of {planned}")

        result = selftest(open_device(kind), time_limit_seconds=limit, progress=told)
    if json:
        print_json(result)
    else:
        print(*result.lines(), sep="\n")
    return 0 if result.kept else 1
