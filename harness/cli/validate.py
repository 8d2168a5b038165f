"""Commands for policies from outside the tree: validate, new."""

from __future__ import annotations

import contextlib
import keyword
import shlex
import sys
import uuid
import warnings
from pathlib import Path
from typing import Annotated

import typer

from reports import storage
from reports.record import now

from ..interrupts import INTERRUPTED
from . import options
from .progress import Reporter


def validate(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE[:NAME]", help="A Python file, and which policy in it.")],
    profile: options.Profile = "regression",
    device: options.Device = "cpu",
    seed: options.Seed = None,
    out: options.Out = None,
    budget: Annotated[float, typer.Option(help="Seconds for timing; 0 leaves it out.", min=0.0)] = 4.0,
    faults: Annotated[float, typer.Option(help="Seconds for faults seeded into the policy; 0 leaves them out.", min=0.0)] = 4.0,
    seconds: Annotated[float, typer.Option(help="Seconds that one check may take.", min=1.0)] = 60.0,
    memory: Annotated[float, typer.Option(help="GiB of memory that one check may take on a CPU.", min=0.1, max=2**16)] = 4.0,
    workers: options.Workers = None,
    json: options.Json = False,
) -> int:
    """Prove or refute a policy in a file of your own: contract, properties, timing, report, and a verdict to paste."""
    from ..journal import see_free
    from ..pool import begin
    from ..run import new_folder, processes_on
    from .pages import write_page

    options.see_profile(profile)
    path, name = _split(file)
    if not path:
        raise typer.BadParameter("the file has no name")
    if not Path(path).is_file():
        raise typer.BadParameter(f"{path}: {'is a folder, not a file' if Path(path).is_dir() else 'there is no such file'}")
    _see_python(Path(path))
    options.see_device(device)
    created = now()
    folder = options.made(out or new_folder(created, seed or 0))
    see_free(folder)
    begin()  # before this process imports what takes seconds too
    workers = workers or processes_on(device)
    from ..validation.file import PolicyNotNamed
    from ..validation.isolation import Limits
    from ..validation.validate import Request
    from ..validation.validate import record as make_record
    from ..validation.validate import validate as perform
    from ..validation.verdict import block

    limits = Limits(seconds=seconds, memory=int(memory * 2**30) if device == "cpu" else None, workers=workers)
    known = tuple((one, entry.path) for entry in ctx.find_root().obj for one in entry.policy_entry.load().layer_classes)
    request = Request(
        path=path,
        name=name,
        profile=profile,
        seed=seed or 0,
        budget=budget,
        faults=faults,
        limits=limits,
        known=known,
        device=device,
    )
    try:
        with Reporter() as reporter:
            done = perform(request, reporter)
    except PolicyNotNamed:
        with contextlib.suppress(OSError):  # which may have been there, with other things in it
            folder.rmdir()
        raise
    run_id = uuid.uuid4().hex
    if (folder / storage.RECORD_NAME).exists():  # of somebody who has ended earlier, and has chosen the same
        folder = options.made(folder.with_name(f"{folder.name}-{run_id[:8]}"))
    command = shlex.join(["harness", *sys.argv[1:]])
    run = make_record(request, done, run_id=run_id, created=created, command=command)
    storage.write(run, folder)
    write_page(run, folder)
    sys.stdout.write((folder / storage.RECORD_NAME).read_text() if json else block(run, done, folder))
    return INTERRUPTED if done.interrupted else 0 if run.ok else 1


def _see_python(path: Path) -> None:
    """Raises one line where ``path`` cannot even be parsed, before what takes seconds is begun."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what importing it says is said then
            compile(path.read_bytes(), path, "exec", dont_inherit=True)
    except SyntaxError as problem:
        where = f", line {problem.lineno}" if problem.lineno else ""
        raise typer.BadParameter(f"{path}{where}: not Python: {problem.msg}") from None
    except ValueError as problem:
        raise typer.BadParameter(f"{path}: not Python: {problem}") from None


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the policy's class, and of its file.")],
    layer: Annotated[str, typer.Option(metavar="MODULE:CLASS", help="The layer class to replace.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the file.")] = Path(),
) -> int:
    """Write a policy for a layer class, filled in as far as the layer's structure can be found out."""
    from ..search import quiet
    from ..validation.invent import invent, write_file
    from ..validation.isolation import limited

    if not name.isidentifier() or keyword.iskeyword(name):
        raise typer.BadParameter(f"{name!r} cannot be the name of a class")
    path = options.made(out) / f"{name.lower()}.py"
    if path.exists():
        raise typer.BadParameter(f"{path}: exists, and is not overwritten; choose another NAME, or another folder by --out")
    with limited(), quiet():
        invented = invent(name, layer)
    write_file(invented, path)
    lines = invented.source.count("\n")
    print(f"{path}: {lines} lines, from one tiny {invented.derivation.model.partition(':')[2]}")
    for one in invented.refused:
        print(f"refuses {one}: the description does not cover it")
    for one in invented.wrong:
        print(f"to settle: {one}")
    print(f"next: harness validate {path}")
    return 0


def _split(file: str) -> tuple[str, str | None]:
    """``FILE[:NAME]``; a colon in a folder's name is no separator."""
    path, colon, name = file.rpartition(":")
    return (path, name) if colon and name.isidentifier() else (file, None)
