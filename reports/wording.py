"""How figures and foreign text are written, in every rendering alike.

Requirements this file must meet:

* A figure has a unit and as many digits as it deserves; the same figure reads the same on a page and on a terminal.
* Text from a record (messages, axis values, scripts) is foreign. What cannot be printed (control characters,
  direction overrides, lone surrogates) is shown as an escape, so that it can neither hide nor reorder its neighbours.
* An outcome is never told by colour alone: each has a symbol and a word.
"""

from __future__ import annotations

import shlex
import statistics
from typing import TYPE_CHECKING

from reports.record import NOT_FINITE, Interval, Timing, Verdict, begun

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTCOME_SYMBOLS = {"held": "✓", "failed": "✗", "vacuous": "∅", "error": "!", "unavailable": "–"}
TIMING_SYMBOLS = {"FASTER": "▲", "SAME": "=", "SLOWER": "▼", "AMBIGUOUS": "?", "VOID": "∅", "FAILED": "✗"}

ROUNDS_UP = 0.9995
"""A figure of three digits from which on it is written as one of the next unit."""
LONGEST_TEXT = 2_000
"""Characters of one foreign text that a rendering shows, scripts and tracebacks apart."""
LONGEST_SCRIPT = 12_000
"""Characters of a script that a rendering shows."""
MOST_NAMES = 3
"""Names that a sentence lists."""


def plain(text: str) -> str:
    """``text`` with every character that does not print, newline and tab apart, written as a Python escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """``plain`` with runs of white space, line ends included, as one space each."""
    return " ".join(plain(text).split())


def clipped(text: str, limit: int = LONGEST_TEXT) -> str:
    """At most ``limit`` characters of ``text``, and how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} characters left out; run.json has them)"


def whole(script: str) -> str | None:
    """``plain`` script, or None where it is too long to be shown: half of one shows nothing."""
    text = plain(script)
    return text if len(text) <= LONGEST_SCRIPT else None


def some_of(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 layer``, ``1,200 layers``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Three digits with a unit from ns to s; whole minutes and hours from two minutes on."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= ROUNDS_UP * scale:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def moment(created: str) -> str:
    """A record's time of creation to the minute, ``2026-03-14 04:10 UTC``; as it stands when it is no ISO 8601 time."""
    time = begun(created)
    return created if time is None else time.strftime("%Y-%m-%d %H:%M UTC")


def named(run: str, created: str) -> str:
    """A run by its id, which commands take, and by its time, which people know it by."""
    return f"{run} ({moment(created)})"


def size(number: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1023.5:
            break
        number, unit = number / 1024, {"B": "KiB", "KiB": "MiB", "MiB": "GiB", "GiB": "TiB"}[unit]
    return f"{_digits(number)} {unit}"


def rate(number: float, unit: str) -> str:
    """A rate in decimal units: ``1.9e11`` FLOP/s is ``190 GFLOP/s``."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= ROUNDS_UP * scale:
            return f"{_digits(number / scale)} {prefix}{unit}"
    return f"{_digits(number)} {unit}"


def judged(verdict: Verdict) -> tuple[str, ...]:
    """What a verdict rests on: examples, layers, the worst error; of one that failed, the example at which it did."""
    if verdict.outcome == "failed":
        return (f"example {verdict.examples:,}",)
    figures = []
    if verdict.examples:
        figures.append(count(verdict.examples, "example"))
    if verdict.layers_expected:
        figures.append(f"{verdict.layers_replaced:,} of {count(verdict.layers_expected, 'layer')}")
    if verdict.worst_error is not None:
        figures.append(f"worst error {error(verdict.worst_error)}")
    return tuple(figures)


def error(value: float | None) -> str:
    """A relative error; a dash where none was measured."""
    if value is None:
        return "–"
    if abs(value) >= NOT_FINITE:
        return "not finite"
    return "0" if value == 0 else f"{value:.1e}"


def ratio(value: float) -> str:
    """Baseline time over subject time, ``1.25×``."""
    return f"{value:.3g}×" if value >= 10 else f"{value:.2f}×"


def interval(value: Interval) -> str:
    """The interval alone, without its estimate: ``1.21 to 1.29``."""
    return f"{ratio(value.low)[:-1]} to {ratio(value.high)[:-1]}"


def percent(fraction: float) -> str:
    """A fraction as a percentage: two digits below ten, whole ones above."""
    return f"{fraction:.0%}" if abs(fraction) >= 0.0995 else f"{fraction:.1%}"


def change(effect: float) -> str:
    """A relative change with its sign, ``−15 %`` or ``+2.1 %``; ``0.0 %`` has none."""
    size = percent(abs(effect)).replace("%", " %")
    return size if float(size.split()[0]) == 0 else ("−" if effect < 0 else "+") + size


def spread(samples: Sequence[float]) -> tuple[str, str] | None:
    """Median and middle half of raw seconds, in words; None without samples."""
    if not samples:
        return None
    if len(samples) == 1:
        return duration(samples[0]), "one sample"
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    first, last = duration(low), duration(high)
    number, unit = first.split()
    return duration(middle), f"{number if last.endswith(f' {unit}') else first} to {last}"


def where(timing: Timing) -> str:
    """What was timed and on what: workload, phase, shape, dtype, device, and the clock where it is not end to end."""
    clock = "" if timing.clock == "end-to-end" else f", {timing.clock} time"
    return f"{timing.workload} {timing.phase}, {timing.shape}, {timing.dtype} on {timing.device}{clock}"


def pair(timing: Timing) -> str:
    """``replaced against original sdpa``."""
    return f"{timing.subject} against {timing.baseline}"


def reproduce(failure: str, run: str) -> str:
    """The command that prints the script of one failure, ready for a shell; ``run`` is a folder or an id."""
    return f"harness reproduce {shlex.quote(run)} {shlex.quote(failure)}"


def _digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
