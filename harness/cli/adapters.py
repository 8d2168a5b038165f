"""The command for other people's replacements: adapters."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reports.record import now

from . import options
from .output import print_json

if TYPE_CHECKING:
    from ..foreign.report import Judged, Report

EXAMPLES = 40


def complete_adapter(incomplete: str) -> list[str]:
    """Adapter names that begin with what has been typed."""
    from policies.foreign.catalogue import ADAPTERS

    return [one.name for one in ADAPTERS if one.name.startswith(incomplete)]


def adapters(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME ...]", help="Adapters; all by default.", autocompletion=complete_adapter),
    ] = None,
    examples: Annotated[int, typer.Option(help="Examples of each reading.", min=1, metavar="N")] = EXAMPLES,
    seed: options.Seed = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and its scripts.", metavar="DIR", parser=options.folder)
    ] = None,
    json: options.Json = False,
) -> int:
    """Judge other people's replacements, unmodified, on what is installed here.

    DeepSpeed's policies are made and asked as DeepSpeed does it; a layer is rebuilt from what each says and compared with
    the original on random tiny models. Each defect comes with the simplest example that shows it, and a script that shows
    it without this program. Adapters whose package or device is missing are named with what to install.

    Start with:  harness adapters deepspeed --out found
    """
    from ..foreign.perform import choose, perform
    from ..run import new_folder

    chosen = choose(names or ())
    console = Console(stderr=True, highlight=False)

    def tell(row: Judged) -> None:
        console.print(f"{row.policy}: {escape(row.verdict)}", soft_wrap=True)

    folder = options.made(out or new_folder(now(), seed or 0))
    reports: list[Report] = []
    for adapter in chosen:
        report, scripts = perform(adapter, ctx.find_root().obj, examples=examples, seed=seed or 0, progress=tell)
        reports.append(report)
        _write_scripts(scripts, folder)
        judged = [one for one in reports if not one.unavailable]
        if judged:  # written after each, so that a run broken off leaves what it found
            _write(reports, folder)
    if not judged:
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing was written; one that holds something stays
        raise typer.BadParameter("; ".join(f"{one.adapter}: {one.unavailable}" for one in reports))
    if json:
        print_json(reports)
    else:
        _show(reports, folder)
    return 0 if all(one.ok for one in judged) else 1


def _write_scripts(scripts: dict[str, str], folder: Path) -> None:
    from reports import storage

    for name, text in scripts.items():
        (folder / "scripts").mkdir(parents=True, exist_ok=True)
        storage.write_atomically(folder / "scripts" / name, text.encode())


def _write(reports: list[Report], folder: Path) -> None:
    from reports import storage

    from ..foreign.report import markdown

    folder.mkdir(parents=True, exist_ok=True)
    storage.write_atomically(folder / "adapters.json", msgspec.json.format(msgspec.json.encode(reports), indent=1))
    storage.write_atomically(folder / "adapters.md", markdown(reports).encode())


def _show(reports: list[Report], folder: Path) -> None:
    from ..foreign.report import cells, columns, details

    console = Console(highlight=False, width=None if Console().is_terminal else 220)
    for report in reports:
        if report.unavailable:
            print(f"{report.adapter}: {report.unavailable}")
            continue
        print(f"{report.adapter}: {', '.join(f'{name} {version}' for name, version in report.versions.items())}")
        table = Table(*columns(report), box=None)
        for row in report.rows:
            table.add_row(*map(escape, cells(report, row)))
        console.print(table)
        for row in report.rows:
            for line in details(row):
                print(f"  {row.policy}: {line}")
        defects = [one for row in report.rows for one in row.defects]
        shown = sum(one.shown for one in defects)
        print(f"{report.adapter}: {len(report.rows)} judged, {len(defects)} defects, {shown} shown by scripts")
    print(f"report and scripts: {folder}")
