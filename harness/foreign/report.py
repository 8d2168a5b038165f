"""What is reported of other people's replacements: data only, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from reports.markdown import verbatim


class Defect(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong. ``silent``: it gives wrong numbers instead of an error. ``example`` lists what is not at its
    simplest in the simplest example that shows it. ``script`` shows it without this project; ``shown`` says that it was
    run here and did."""

    id: str
    what: str
    silent: bool
    example: str
    error: float | None = None
    script: str | None = None
    shown: bool = False


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One policy, or one case of a replacement. ``cells`` are what the table tells of it.

    ``proven`` examples agreed exactly once the facts in ``supplied`` were taken from us; ``from_us`` is what its tuples
    cannot say at all.
    """

    policy: str
    layer: str
    cells: dict[str, str] = {}
    verdict: str
    proven: int = 0
    supplied: tuple[str, ...] = ()
    from_us: str = ""
    refused: str = ""
    defects: tuple[Defect, ...] = ()
    seconds: float = 0.0
    lost: bool = False
    """Nothing came of it: its process hung, died or raised."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one adapter's judging came to. ``unavailable``: why there is nothing to tell."""

    adapter: str
    versions: dict[str, str] = {}
    rows: tuple[Judged, ...] = ()
    unavailable: str = ""

    @property
    def ok(self) -> bool:
        return not any(row.defects or row.lost for row in self.rows)


def columns(report: Report) -> tuple[str, ...]:
    """Heads of the table: what any of the rows tells."""
    told = dict.fromkeys(name for row in report.rows for name in row.cells)
    return ("judged", *told, "verdict")


def cells(report: Report, row: Judged) -> tuple[str, ...]:
    return (row.policy, *(row.cells.get(name, "") for name in columns(report)[1:-1]), row.verdict)


def details(row: Judged) -> Iterable[str]:
    """One line a defect, then what was proven and what was supplied."""
    for one in row.defects:
        kind = "silent" if one.silent else "loud"
        where = f" [{one.example}]" if one.example else ""
        where += f", relative error {one.error:.1e}" if one.error is not None and "relative error" not in one.what else ""
        script = f" -> {one.script}{'' if one.shown else ' (does not show it)'}" if one.script else ""
        yield f"{one.id}, {kind}: {one.what}{where}{script}"
    if row.proven:
        ours = f", with {', '.join(row.supplied)} from us" if row.supplied else ""
        yield f"proven: the rest agrees on {row.proven} examples{ours}"
    if row.from_us:
        yield f"it cannot say, so we did: {row.from_us}"
    if row.refused:
        yield f"refuses, honestly: {row.refused}"


def markdown(reports: Iterable[Report]) -> str:
    """The reports as a page. Names and messages are other people's, so none of them is markup."""
    lines: list[str] = []
    for report in reports:
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        lines += [f"## {verbatim(report.adapter)}", "", verbatim(versions or report.unavailable), ""]
        if not report.rows:
            continue
        heads = columns(report)
        lines += [_line(heads), "|" + "---|" * len(heads), *(_line(cells(report, row)) for row in report.rows)]
        for row in report.rows:
            found = [f"- {verbatim(line)}" for line in details(row)]
            lines += ["", f"### {verbatim(row.policy)}", "", f"{verbatim(row.layer)}.", "", *found]
        lines.append("")
    return "\n".join(lines)


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(map(verbatim, row))} |"
