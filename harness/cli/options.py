"""Options that several commands share, said once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..profiles import PROFILES
from ..registry import CaseEntry, choose
from ..suggest import suggestion

CLOSED_PIPE = 141
"""Exit status where nobody reads any more what is printed, as shells have it."""


def complete_case(ctx: typer.Context, incomplete: str) -> list[str]:
    """Case names that begin with what has been typed."""
    return [entry.name for entry in ctx.find_root().obj or () if entry.name.startswith(incomplete)]


def chosen(ctx: typer.Context, names: list[str] | None) -> tuple[CaseEntry, ...]:
    """The cases of these names, or all. Raises ``UnknownCase`` with a suggestion."""
    return choose(ctx.find_root().obj, names or ())


def see_profile(name: str) -> None:
    """Raises one line that names the profiles, where none is called ``name``."""
    see_known("profile", name, tuple(PROFILES))


def see_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Raises one line with the nearest of ``known``, or all of them, where ``name`` is none."""
    if name not in known:
        hint = suggestion(name, known, f"there are: {' '.join(known)}")
        raise typer.BadParameter(f"no {kind} is called {name!r}; {hint}")


def see_device(kind: str) -> None:
    """Raises ``DeviceUnavailable`` before anything is begun on a device that is not there."""
    if kind != "cpu":
        from ..timing.opening import open_device

        open_device(kind)


def made(folder: Path) -> Path:
    """``folder``, which is there and can be written to from now on: before any work, not behind it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise typer.BadParameter(f"{folder}: cannot be written ({problem.strerror})") from None
    return folder


def said(ctx: typer.Context) -> list[str]:
    """Names of the parameters that the command line gives."""
    sources = {one: ctx.get_parameter_source(one) for one in ctx.params}
    return [one for one, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def see_nothing_else(ctx: typer.Context, option: str, *beside: str) -> None:
    """Raises one line where the command line says more than ``option`` and those ``beside`` it."""
    others = [one for one in said(ctx) if one not in (option, *beside)]
    if others:
        raise typer.BadParameter(f"--{option} goes on with what was asked for then; leave out {', '.join(sorted(others))}")


def folder(name: str) -> Path:
    """Raises one line for no name, which a shell's unset variable leaves: it would stand for the folder one is in."""
    if not name:
        raise typer.BadParameter("the folder has no name; . is the one you are in")
    return Path(name)


Cases = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CASE ...]", help="Architectures; all of them by default.", autocompletion=complete_case),
]
Profile = Annotated[str, typer.Option(help="Depth of the check: quick, regression or nightly.", metavar="NAME")]
Examples = Annotated[
    int | None,
    typer.Option(help="Examples of each main property, instead of the profile's number.", min=1, metavar="N"),
]
Properties = Annotated[
    list[str] | None,
    typer.Option(
        "--property", help="Only this property (harness list --properties has the names); may be given again.", metavar="NAME"
    ),
]
Execution = Annotated[
    str, typer.Option("--plan", help="How replacements run: auto, plain, onednn, packed, graphed or compiled.", metavar="NAME")
]
Seed = Annotated[int | None, typer.Option(help="Seed of all random choices (default: 0).", min=0)]
NightlySeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of all random choices (default: 0; nightly: a new one).", min=0)
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/<time>-<seed>).", metavar="DIR", parser=folder)]
Resume = Annotated[
    Path | None, typer.Option(help="Go on with the unfinished run in this folder, as it was begun.", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on stdout.")]
Device = Annotated[str, typer.Option(help="Where models run: cpu or cuda.", metavar="NAME")]
Timed = Annotated[str, typer.Option("--device", help="Where to time, cpu or cuda; checks run on the CPU.", metavar="NAME")]
Budget = Annotated[float, typer.Option(help="Seconds that timing may take.", min=1.0, metavar="SECONDS")]
Workers = Annotated[int | None, typer.Option(help="Processes that check in parallel (default: one a core).", min=1)]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, its run.json, or name or id of one in runs/.")]
