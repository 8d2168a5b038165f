"""Commands that read runs: report, compare, history. They import torch only for a run that is not finished."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reports import storage
from reports.record import Run

from . import options
from .output import print_json
from .pages import previous_run, write_page


def report(
    ctx: typer.Context,
    run: options.RunPath,
    format: Annotated[str, typer.Option(help="html (written beside the record), md or text (printed).")] = "html",
) -> int:
    """Render the report of a run again; of one that is not finished, what it has found so far."""
    options.see_known("format", format, ("html", "md", "text"))
    found, folder = _found(ctx, run)
    match format:
        case "html":
            print(f"report: {write_page(found, folder)}")
        case "md":
            from reports.markdown import render_markdown

            sys.stdout.write(render_markdown(found, previous_run(found, folder), place=str(folder)))
        case _:
            from reports import terminal

            place = str(folder)
            terminal.show(Console(), terminal.render_terminal(found, place), terminal.run_lines(found, place))
    return 0


def compare(
    ctx: typer.Context,
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The earlier run.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="The later run.")],
    fail_on: Annotated[
        str, typer.Option(help="Comma-separated: wrong, slower, refused, missing. Exit status 1 if any is found.")
    ] = "wrong,slower",
    format: Annotated[str, typer.Option(help="text or md.")] = "text",
    json: options.Json = False,
) -> int:
    """Say what became wrong, slower, faster, refused, unavailable or missing between two runs."""
    from reports import compare as comparing
    from reports import markdown, terminal

    options.see_known("format", format, ("text", "md"))
    comparison = comparing.compare(_found(ctx, base)[0], _found(ctx, head)[0])
    broken = comparing.violations(comparison, [one.strip() for one in fail_on.split(",") if one.strip()])
    if json:
        print_json(comparison)
    elif format == "md":
        sys.stdout.write(markdown.render_comparison_markdown(comparison))
    else:
        terminal.show(Console(), terminal.render_comparison(comparison), terminal.comparison_lines(comparison))
    return 1 if broken else 0


def history(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of runs.")],
    html: Annotated[Path | None, typer.Option(help="Write a page of trends here.", metavar="FILE")] = None,
) -> int:
    """Show trends over a folder of runs: regressions that were never recovered, and what never held."""
    from reports import terminal
    from reports.history import read_history
    from reports.html import render_history_html
    from reports.trends import find_trends

    found = read_history(folder)
    trends = find_trends(found)
    if html is not None:  # first: whoever reads what is printed may stop reading
        storage.write_atomically(html, render_history_html(found, trends).encode())
    terminal.show(Console(), terminal.render_history(found, trends), terminal.history_lines(found, trends))
    if html is not None:
        print(f"page: {html}")
    return 1 if trends.regressions or trends.never_held else 0


def reproduce(
    ctx: typer.Context,
    run: options.RunPath,
    failure: Annotated[str, typer.Argument(metavar="FAILURE", help="Its id in the report, such as bert/cache.")],
    out: Annotated[Path | None, typer.Option(help="Write the script here (default: print it).", metavar="FILE")] = None,
) -> int:
    """Write the self-contained script that shows one failure of a run, without the harness."""
    failures = {one.failure.id: one.failure for one in _found(ctx, run)[0].verdicts if one.failure is not None}
    if failure not in failures:
        known = f"there are: {' '.join(failures)}" if failures else "no failure of this run has a script"
        raise typer.BadParameter(f"{run}: no failure is called {failure!r}; {known}")
    script = failures[failure].script
    if script is None:
        raise typer.BadParameter(f"{run}: the record holds no script for {failure}: {failures[failure].message}")
    if out is None:
        sys.stdout.write(script)
    else:
        storage.write_atomically(out, script.encode())
        print(f"script: {out}")
    return 0


def _found(ctx: typer.Context, run: Path) -> tuple[Run, Path]:
    """The run at ``run``, or the one in runs/ that is called so, and its folder; what there is of it where it is not finished."""
    path = storage.find(run)
    folder = path if path.is_dir() else path.parent
    if (folder / storage.JOURNAL_NAME).exists() and not (folder / storage.RECORD_NAME).exists():
        from ..run import so_far

        return so_far(folder, ctx.find_root().obj), folder
    return storage.read(path), folder
