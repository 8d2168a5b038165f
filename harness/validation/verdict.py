"""The verdict that an author pastes where a reviewer reads it: a short block of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from reports.record import Run, Verdict, first_departing
from reports.wording import one_line, reproduce

from ..faults.report import judged, killed, median_examples
from .validate import Validation, notes

HINTS = {
    "file": "fix the file; nothing else could be looked at",
    "case": "name a layer in layer_classes whose model can be built, or write a Case beside the policy",
    "reading": "describe the layer, by what read() or plan() returns, or refuse it: raise layer.refuse('the feature') in "
    "read(), UnsupportedLayer('the feature') in plan()",
    "contract": "what callers read has to stay: forward's parameters, attributes, parameter names; where a layer is described, "
    "look at heads, head_size and which linear is which",
    "layer equality": "compare the stages in the report: the first that departs is the part that is described wrongly",
    "model equality": "layers agree alone but not in the model: look at what the model hands to them (call=...)",
    "cache": "look at cache=... of the call and at cache_index",
    "refusal": "refuse what cannot be expressed: read() by layer.refuse('the feature'), a policy of another kind by "
    "UnsupportedLayer('the feature')",
}
"""What to look at first, by the property that does not hold."""
NO_FLOAT64 = (
    "most properties call layers in float64; where a kernel has none, let the layer compute by public operators there: the "
    "rounding properties judge the kernel"
)

TOO_SLOW = "a check may take longer by --seconds, on a busy machine above all"


def block(run: Run, done: Validation, folder: Path) -> str:
    """The verdict as Markdown."""
    return "\n".join(_lines(run, done, folder)) + "\n"


def _lines(run: Run, done: Validation, folder: Path) -> Iterator[str]:
    wrong = done.failed
    judged = [one for one in done.verdicts if one.property not in ("file", "case") and one.outcome != "unavailable"]
    examples = sum(one.examples for one in judged)
    replaced = sum(one.layers_replaced for one in judged)
    holds = len(judged) - len([one for one in wrong if one in judged])
    if judged:
        yield f"### {done.policy}: {'DOES NOT HOLD' if not run.ok else 'HOLDS' if run.complete else 'HOLDS SO FAR, broken off'}"
        yield ""
        yield (
            f"{holds} of {len(judged)} properties hold on {examples} random models of {' and '.join(done.subjects)} "
            f"({replaced} layers replaced), profile {run.profile}, seed {run.seed}, {run.seconds:.0f} s."
        )
    else:
        yield f"### {done.file if done.policy == '?' else done.policy}: NOT JUDGED"
        yield ""
    yield ", ".join(f"{name} {run.environment.packages.get(name, '?')}" for name in ("transformers", "torch")) + "."
    untimed = [row for row in done.timings if row.verdict == "FAILED"]
    if untimed:
        yield ""
        yield f"- **timing**: {one_line(untimed[0].reason)} [{untimed[0].workload}, {untimed[0].shape}]"
    if wrong:
        yield ""
        yield from _reasons(wrong)
        yield from _where(wrong)
        hint = _hint(wrong)
        shown = next((one.failure.id for one in wrong if one.failure is not None and one.failure.script), None)
        if hint is not None or shown is not None:
            yield ""
        if hint is not None:
            yield f"Next: {hint}."
        if shown is not None:
            yield f"Again, by itself: {reproduce(shown, str(folder))}"
    yield from _more(run, done)
    yield ""
    yield f"Report: {folder / 'index.html'}"


def _hint(wrong: list[Verdict]) -> str | None:
    if any(map(_lacks_float64, wrong)):
        return NO_FLOAT64
    return TOO_SLOW if "did not end within" in wrong[0].reason else HINTS.get(wrong[0].property)


def _lacks_float64(verdict: Verdict) -> bool:
    """Whether a layer raised, or answered in another dtype, for being called in float64 (which torch's kernels call Double)."""
    return verdict.tolerance is not None and ("float64" in verdict.reason or "Double" in verdict.reason)


def _reasons(wrong: list[Verdict]) -> Iterator[str]:
    """Each reason once, with the properties that give it."""
    first: dict[str, list[Verdict]] = {}
    for one in wrong:
        first.setdefault(one_line(one.reason), []).append(one)
    for reason, verdicts in list(first.items())[:8]:
        also = f" and {len(verdicts) - 1} more" if len(verdicts) > 1 else ""
        yield f"- **{verdicts[0].property}**{also}: {reason}{_example(verdicts[0])}"
    if len(first) > 8:
        yield f"- and {len(first) - 8} more reasons"


def _where(wrong: list[Verdict]) -> Iterator[str]:
    """The stage at which most of what failed departs first."""
    stages = [first_departing(one.failure.stages) for one in wrong if one.failure is not None]
    names = Counter(stage.name for stage in stages if stage is not None)
    for name, times in names.most_common(1):
        yield f"- departs first at **{name}**, in {times} of {len(wrong)}"


def _more(run: Run, done: Validation) -> Iterator[str]:
    lines = list(notes(done))
    if done.timings or lines or done.untimed or done.faults or done.unexamined:
        yield ""
    yield from _budgets(run)
    yield from _faults(done)
    for row in done.timings:
        found = f": {one_line(row.reason)}"
        if row.ratio is not None:
            found = f" {row.ratio.estimate:.2f}x [{row.ratio.low:.2f}, {row.ratio.high:.2f}]"
        yield f"- {row.workload}, {row.shape}: {row.subject} against {row.baseline} {row.verdict}{found}"
    if any(row.verdict == "AMBIGUOUS" for row in done.timings):
        yield "- AMBIGUOUS: too little time to tell; --budget 60 takes a minute for it"
    unavailable: dict[str, list[str]] = {}
    for one in done.verdicts:
        if one.outcome == "unavailable":
            unavailable.setdefault(one_line(one.reason), []).append(one.property)
    for reason, names in unavailable.items():
        yield f"- {', '.join(names)}: {reason}"
    narrower = [one.property for one in done.verdicts if one.outcome == "held" and one.reason]
    if narrower:
        yield f"- held, of less than was to be asked, since the original raises (the report says what): {', '.join(narrower)}"
    if done.untimed:
        yield f"- not timed: {done.untimed}"
    for line in lines[:12]:
        yield f"- {line}"
    if len(lines) > 12:
        yield f"- and {len(lines) - 12} more notes of this kind"


def _budgets(run: Run) -> Iterator[str]:
    """How much of the rounding that is allowed was used."""
    worst: dict[str, float] = {}
    for one in run.budgets:
        worst[one.dtype] = max(one.used_worst, worst.get(one.dtype, 0.0))
    if worst:
        used = ", ".join(
            f"{dtype} {share:.0%}" if share < 10 else f"{dtype} {share:,.0f} times" for dtype, share in worst.items()
        )
        yield f"- error budget used at worst: {used}"


def _faults(done: Validation) -> Iterator[str]:
    """How well errors in this policy can be seen."""
    if done.unexamined:
        yield f"- not all faults were tried: {done.unexamined}"
    tried = judged(done.faults)
    if not tried:
        return
    survivors = ", ".join(one.fault for one in tried if one.status == "survived")
    missed = f"; not noticed in a second each: {survivors}" if survivors else ""
    examples = f", median {median_examples(tried):.0f} examples" if killed(tried) else ""
    yield f"- seeded faults: {len(killed(tried))} of {len(tried)} tried were noticed{examples}{missed}"


def _example(verdict: Verdict) -> str:
    failure = verdict.failure
    if failure is None or not failure.off_simplest:
        return ""
    return " [with " + ", ".join(f"{name}={failure.example[name]}" for name in failure.off_simplest) + "]"
