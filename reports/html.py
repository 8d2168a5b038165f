"""The pages that people open: one run, and the trends of many.

Requirements this file must meet:

* One file, offline: no script, no font, no picture from elsewhere, and a content security policy that says so.
* Every string of a record is foreign. It passes ``_shown`` (clipped, unprintable characters visible) and then the
  template engine's escaping; no template marks anything as safe.
* A page answers first and proves afterwards: verdict and slowdowns on the first screen, evidence below.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from reports import chart, wording
from reports.compare import Comparison, ComparisonError, compare
from reports.record import WRONG, first_departing
from reports.summary import columns, is_replaced, measured_ratio, summarize, typical_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reports.history import History
    from reports.record import Failure, Run, Timing, Verdict
    from reports.trends import Trends

LONGEST_TRACEBACK = 12_000
"""Characters."""
FULL_EVIDENCE = 60
"""Failures shown with all their evidence; a run in which everything fails needs a summary, not a megabyte."""
NEAREST = 20
"""Worst errors shown, those nearest to their limits."""


def render_html(run: Run, previous: Run | None = None) -> str:
    """The page of one run, with the differences to ``previous`` when it is given."""
    summary = summarize(run)
    comparison, incomparable = _comparison(previous, run)
    intervals = [ratio for t in run.timings if (ratio := measured_ratio(t)) is not None]
    return (
        _environment()
        .get_template("run.html.j2")
        .render(
            run=run,
            previous=previous,
            summary=summary,
            comparison=comparison,
            incomparable=incomparable,
            evidence=_alike(summary.wrong),
            numbers={id(v): n for n, v in enumerate(summary.wrong, 1)},
            statements={v.property: v.statement for v in run.verdicts},
            typical=typical_ratio([t for t in run.timings if is_replaced(t)]),
            overview=columns(run),
            timings=_by_case(run.timings),
            used=[t for t in run.timings if t.flops_fraction is not None or t.bytes_fraction is not None],
            measured=sorted((v for v in run.verdicts if v.worst_error is not None), key=_from_limit),
            nearest=NEAREST,
            refused=_refused(run),
            axis=chart.ratio_axis(intervals, 260),
            wide=chart.ratio_axis(intervals, 400),
            errors=chart.error_axis(240),
            full_evidence=FULL_EVIDENCE,
        )
    )


def render_history_html(history: History, trends: Trends) -> str:
    """The page of a folder of runs: regressions that still stand, what never held, then every series."""
    steady = [(key, points) for key, points in history.properties.items() if all(p.outcome == "held" for p in points)]
    unsteady = [(key, points) for key, points in history.properties.items() if any(p.outcome != "held" for p in points)]
    template = _environment().get_template("history.html.j2")
    return template.render(history=history, trends=trends, steady=steady, unsteady=unsteady)


def _comparison(previous: Run | None, run: Run) -> tuple[Comparison | None, str]:
    if previous is None:
        return None, ""
    try:
        return compare(previous, run), ""
    except ComparisonError as problem:
        return None, str(problem)


def _from_limit(verdict: Verdict) -> float:
    """How far a worst error is below its tolerance, as a share of it; one without a tolerance is nowhere near."""
    if not verdict.tolerance or verdict.worst_error is None:
        return math.inf
    return -verdict.worst_error / verdict.tolerance


def _refused(run: Run) -> dict[str, Counter[str]]:
    """What was refused by name in each case, and in how many examples."""
    found: dict[str, Counter[str]] = {}
    for verdict in run.verdicts:
        if verdict.refusals:
            found.setdefault(verdict.case, Counter()).update(verdict.refusals)
    return found


def _alike(wrong: Sequence[Verdict]) -> list[list[Verdict]]:
    """What did not hold, that of one case together which departs at the same stage first."""
    groups: dict[tuple[str | int, ...], list[Verdict]] = {}
    for place, verdict in enumerate(wrong):
        stage = first_departing(verdict.failure.stages) if verdict.failure is not None else None
        key = (verdict.case, verdict.policy, stage.name) if stage is not None else (place,)
        groups.setdefault(key, []).append(verdict)
    return list(groups.values())


class _AxisRow(NamedTuple):
    axis: str
    value: str
    passing: str | None
    off: bool
    differs: bool


def _axes(failure: Failure) -> tuple[list[_AxisRow], list[_AxisRow]]:
    """The axes of a minimal example: those that tell something, and the others."""
    passing = failure.nearest_passing or None
    rows = [
        _AxisRow(
            axis=axis,
            value=value,
            passing=passing.get(axis) if passing else None,
            off=axis in failure.off_simplest,
            differs=passing is not None and passing.get(axis) != value,
        )
        for axis, value in failure.example.items()
    ]
    return [row for row in rows if row.off or row.differs], [row for row in rows if not (row.off or row.differs)]


def _by_case(timings: Sequence[Timing]) -> list[tuple[str, list[Timing]]]:
    ordered = sorted(timings, key=lambda t: t.case)
    return [(case, list(rows)) for case, rows in groupby(ordered, key=lambda t: t.case)]


def _shown(value: Any) -> Any:
    # Markup is what macros and ``_block`` return: already escaped.
    if isinstance(value, str) and not isinstance(value, Markup):
        return wording.clipped(wording.plain(value))
    return value


def _block(text: str) -> Markup:
    """A traceback: longer than other text may be."""
    return escape(wording.clipped(wording.plain(text), LONGEST_TRACEBACK))


def _script(text: str) -> Markup | None:
    script = wording.whole(text)
    return None if script is None else escape(script)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in text[:80])


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (
        "count",
        "duration",
        "size",
        "rate",
        "error",
        "ratio",
        "interval",
        "percent",
        "change",
        "spread",
        "where",
        "pair",
        "moment",
        "reproduce",
    )
    environment.filters |= {name: getattr(wording, name) for name in words}
    environment.filters |= {"block": _block, "script": _script, "axes": _axes, "slug": _slug, "identity": id}
    environment.globals |= {
        "OUTCOMES": wording.OUTCOME_SYMBOLS,
        "VERDICTS": wording.TIMING_SYMBOLS,
        "WRONG": WRONG,
        "measured_ratio": measured_ratio,
        "sparkline": chart.sparkline,
    }
    return environment
