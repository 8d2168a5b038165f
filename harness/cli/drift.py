"""The command that tells what changed upstream."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .output import print_json


def drift(
    update: Annotated[bool, typer.Option("--update", help="Take new fingerprints and keep them in the tree.")] = False,
    json: options.Json = False,
) -> int:
    """Tell what changed in the layers that policies replace since they were proven, and which policies are at risk."""
    from policies.catalogue import ENTRIES

    from ..drift.compare import KEPT, compare, read_kept, take, write_kept

    now = take()
    if update:
        write_kept(now)
        if json:
            print_json({"kept": str(KEPT), "layers": sorted(now.layers), "versions": now.versions})
        else:
            print(f"{KEPT}: {len(now.layers)} layer classes of {_words(now.versions)}")
        return 0
    found = compare(read_kept(), now)
    if json:
        print_json(found)
        return 1 if found.changes else 0
    print(f"kept: {_words(found.kept)}")
    print(f"here: {_words(found.installed)}")
    for change in found.changes:
        print(f"{change.layer}: {change.what} [{', '.join(change.risk)}]")
    listed = {path for entry in ENTRIES for path in entry.load().layer_classes} if found.unavailable else set()
    for path in found.unavailable:
        why = "its library is not installed" if path in listed else "no policy replaces it any more"
        print(f"{path}: not compared, {why}")
    at_risk = sorted({policy for change in found.changes for policy in change.risk})
    if at_risk:
        print(f"at risk: {', '.join(at_risk)}")
        print("next: harness check, then harness drift --update")
    else:
        print(f"nothing changed in {len(now.layers)} layer classes")
    return 1 if found.changes else 0


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
