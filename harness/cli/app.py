"""The application: its commands, and what every command does with an error.

Exit status: 0 all held; 1 a check failed or a regression was found; 2 bad usage or unreadable input, with one line on
stderr that says what and where; 130 interrupted or terminated; 141 nobody reads what is printed. Commands import what they
need when they run, so that ``--help``, ``list`` and ``report`` open at once.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from ..environment import installed
from ..interrupts import INTERRUPTED
from ..registry import CaseEntry
from . import adapters as adapting
from . import drift as drifting
from . import explore, options, perform, show
from . import faults as examining
from . import validate as validating

HELP = """Proves or refutes layer-replacement policies for Transformer and diffusion models.

A policy recognises a layer, reads its weights and puts a faster layer in its place. This program checks that the fast
layer computes the same function (on random tiny models, in exact arithmetic), times it against the original at real
sizes, and writes a report.

Start with:  harness list, then  harness run bert --profile quick

Exit status: 0 all held; 1 something failed or regressed; 2 bad usage or unreadable input; 130 interrupted or terminated;
141 nobody reads what is printed.
"""

app = typer.Typer(
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _say_version(asked: bool) -> None:
    if asked:
        print("harness", installed().get("replace-policy-harness", "from a checkout"))
        raise typer.Exit


@app.callback(invoke_without_command=True, help=HELP)
def root(
    ctx: typer.Context,
    say_version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is, and end.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


ROOMS = ("harness", "reports", "policies", "cases")

for command in (
    explore.list_cases,
    perform.check,
    perform.bench,
    perform.run,
    validating.validate,
    validating.new,
    adapting.adapters,
    drifting.drift,
    examining.faults,
    show.reproduce,
    show.report,
    show.compare,
    show.history,
    explore.doctor,
):
    app.command(name="list" if command is explore.list_cases else None)(command)


def main(cases: tuple[CaseEntry, ...]) -> None:
    """Run the command line over ``cases`` and exit. A sign that a terminal has not got is no reason to die."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    result = status(cases, sys.argv[1:])
    try:
        if sys.stdout is not None:  # which somebody may have closed
            sys.stdout.flush()
    except BrokenPipeError:
        result = options.CLOSED_PIPE
    _end(result)


def _end(result: int) -> NoReturn:
    """End the program, and do what is to be done at its end, but do not wait for Python to take apart all that torch and
    transformers hold, which takes it one to two seconds, nor let it try once more to print what nobody reads."""
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.flush()
    os._exit(result)


def status(cases: tuple[CaseEntry, ...], arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    command: Any = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="harness", standalone_mode=False, obj=cases)
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except SystemExit as way_out:
        if not isinstance(way_out.__context__, BrokenPipeError):
            raise
        return options.CLOSED_PIPE  # typer gives it the status of a failed check
    except Exception as problem:
        line = _for_the_user(problem)
        if line is None:
            raise
        print(f"harness: {line}", file=sys.stderr)
        return 2
    if result == INTERRUPTED:  # which is what typer makes of a KeyboardInterrupt
        print("harness: interrupted", file=sys.stderr)
    return result if isinstance(result, int) else 0


def _for_the_user(problem: Exception) -> str | None:
    """One line for errors that the user can solve: bad usage, this project's named errors, files that cannot be read or
    written. None for everything else, which is a fault of the program and deserves its traceback."""
    if hasattr(problem, "format_message"):
        return " ".join(problem.format_message().split())
    if isinstance(problem, OSError) and problem.strerror:
        where = f"{os.fsdecode(problem.filename)}: " if problem.filename else ""
        return f"{where}{problem.strerror}"
    if isinstance(problem, ValueError) and type(problem).__module__.split(".")[0] in ROOMS:
        return " ".join(str(problem).split())
    return None
