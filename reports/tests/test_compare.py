"""Comparison of two runs."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given

from reports import compare, html, markdown, storage, terminal
from reports.tests import strategies, synthetic


def kinds(base, head, **options):
    return [change.kind for change in compare.compare(base, head, **options).changes]


def judged(**changes):
    return synthetic.run("x", verdicts=(synthetic.verdict(**changes),), timings=())


def timed(at, **changes):
    return synthetic.run("x", timings=(synthetic.timing(at=at, **changes),))


def test_a_run_compared_with_itself_shows_no_change_and_no_difference():
    run = synthetic.full_run(faulty=False)
    found = compare.compare(run, run)
    assert (found.changes, found.differences, found.only_in_base, found.only_in_head) == ((), (), (), ())
    assert found.verdicts_compared == len(run.verdicts)
    assert found.timings_compared == len(run.timings)


def test_a_base_that_is_the_later_run_is_said_to_be():
    earlier, later = judged(), synthetic.run("y", created="2026-03-14T04:10:01", timings=())
    said = "The base run is the later of the two: the changes are told backwards."
    assert said in compare.compare(later, earlier).differences
    assert said not in compare.compare(earlier, later).differences


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("held", "failed", ["wrong"]),
        ("held", "vacuous", ["wrong"]),
        ("unavailable", "error", ["wrong"]),
        ("failed", "vacuous", ["still wrong"]),
        ("failed", "held", ["fixed"]),
        ("held", "unavailable", ["unavailable"]),
        ("unavailable", "held", []),
        ("held", "held", []),
    ],
)
def test_outcomes_are_compared_case_by_case_and_property_by_property(before, after, kind):
    assert kinds(judged(outcome=before), judged(outcome=after)) == kind


def several(case, names, **changes):
    return tuple(synthetic.verdict(case, name, **changes) for name in names)


def test_a_case_whose_package_is_gone_is_not_judged_any_more_and_refused_by_fail_on():
    absent = synthetic.verdict(
        "megatron", "available", outcome="unavailable", reason="megatron-core is not installed.", examples=0, worst_error=None
    )
    base = synthetic.run(verdicts=(synthetic.verdict(), *several("megatron", ["cache", "graph"])), timings=())
    head = synthetic.run(verdicts=(synthetic.verdict(), absent), timings=())
    found = compare.compare(base, head)
    (change,) = found.changes
    assert (change.kind, change.sentence) == (
        "unavailable",
        "megatron: not judged any more (2 verdicts in the base run): megatron-core is not installed.",
    )
    assert compare.violations(found, ["refused"]) == (change,)
    assert kinds(head, base) == kinds(head, head) == []
    alone = synthetic.run(verdicts=several("megatron", ["cache"]), timings=())
    assert kinds(alone, synthetic.run(verdicts=(absent,), timings=())) == ["unavailable"]


def test_what_the_head_lacks_is_missing_once_a_case_however_much_it_is():
    base = synthetic.run(
        verdicts=(*several("bert", ["cache", "graph", "refusal"]), synthetic.verdict("opt")),
        timings=(synthetic.timing("bert"), synthetic.timing("opt"), synthetic.timing("opt", dtype="bfloat16")),
    )
    head = synthetic.run(verdicts=several("bert", ["cache"]), timings=(synthetic.timing("opt"),))
    found = compare.compare(base, head)
    assert [(change.kind, change.sentence) for change in found.changes] == [
        ("missing", "bert: 2 verdicts and 1 timed row of the base run are not in this one"),
        ("missing", "opt: 1 verdict and 1 timed row of the base run are not in this one"),
    ]
    assert compare.violations(found, ["missing"]) == found.changes
    assert compare.violations(found, ["wrong", "slower", "refused"]) == ()


def test_rows_that_cannot_be_compared_or_were_never_judged_are_not_missing():
    base = synthetic.run(verdicts=(synthetic.verdict(), *several("opt", ["cache"], outcome="unavailable")))
    head = synthetic.run(environment=synthetic.environment("other"), timings=())
    assert kinds(base, head) == []


def test_a_failure_of_something_the_base_never_judged_is_wrong_and_says_so():
    head = synthetic.run(
        verdicts=(synthetic.verdict(), synthetic.verdict("opt", outcome="failed", reason="It differs.")), timings=()
    )
    (change,) = compare.compare(judged(), head).changes
    assert (change.kind, change.sentence) == (
        "wrong",
        "opt: layer equality: failed (before: not in the base run): It differs.",
    )


def test_a_feature_refused_for_the_first_time_is_named():
    base, head = (
        judged(refused=2, refusals={"windows": 2}),
        judged(refused=5, refusals={"windows": 2, "cross-attention": 3}),
    )
    (change,) = compare.compare(base, head).changes
    assert (change.kind, change.sentence) == (
        "refused",
        "bert: layer equality: refused now, not before: cross-attention.",
    )


def test_refusals_without_names_are_new_when_there_were_none_before():
    assert kinds(judged(), judged(refused=3)) == ["refused"]
    assert kinds(judged(refused=1), judged(refused=3)) == []


def test_a_row_is_slower_only_when_its_interval_lies_below_and_the_change_exceeds_the_margin():
    assert kinds(timed(1.40), timed(1.30)) == ["slower"]
    assert kinds(timed(1.40), timed(1.50)) == ["faster"]
    assert kinds(timed(1.40, width=0.10), timed(1.33, width=0.10)) == [], "the intervals overlap"
    assert kinds(timed(1.40, width=0.002), timed(1.38, width=0.002)) == [], "the change is below the margin"
    assert kinds(timed(1.40, width=0.002), timed(1.38, width=0.002), margin=0.01) == ["slower"]


def test_a_slower_row_says_by_how_much_and_which_side_moved():
    base = timed(1.4, baseline_seconds=(0.0014,), subject_seconds=(0.001,))
    (change,) = compare.compare(base, timed(1.12, baseline_seconds=(0.0014,), subject_seconds=(0.00125,))).changes
    assert change.effect == pytest.approx(-0.2)
    assert change.sentence == (
        "bert: bert-base prefill, batch 1, 128 tokens, float32 on cpu, replaced against original sdpa: "
        "1.40× [1.39 to 1.41], then 1.12× [1.11 to 1.13] (−20 %); "
        "replaced 1.00 ms, then 1.25 ms; original sdpa 1.40 ms, then 1.40 ms."
    )


def test_two_original_columns_are_never_called_slower():
    assert kinds(timed(1.4, subject="original compiled"), timed(1.0, subject="original compiled")) == []


def test_a_row_whose_outputs_differ_is_wrong_and_a_void_row_is_not_compared():
    failed, void = timed(1.4, verdict="FAILED", reason="outputs differ"), timed(1.0, verdict="VOID")
    assert kinds(timed(1.4), failed) == ["wrong"]
    assert kinds(failed, timed(1.4)) == ["fixed"]
    found = compare.compare(timed(1.4), void)
    assert found.timings_compared == 0
    assert "1 timed row is not compared, being void or without an interval in one of the runs." in found.differences


@pytest.mark.parametrize("elsewhere", [{}, {"machine": "other"}, {"threads": 4}])
def test_a_row_whose_outputs_differ_is_wrong_whether_or_not_the_base_has_its_like(elsewhere):
    failed = {"verdict": "FAILED", "reason": "outputs differ", **synthetic.UNTIMED}
    base = synthetic.run("a", timings=(synthetic.timing(),))
    head = synthetic.run(
        "b",
        environment=synthetic.environment(**elsewhere),
        timings=(synthetic.timing(), synthetic.timing("opt", **failed)),
    )
    (change,) = compare.compare(base, head).changes
    assert (change.kind, change.case) == ("wrong", "opt")
    assert change.sentence.endswith(": not timed (before: not in the base run): outputs differ")


def test_a_row_that_failed_at_another_baseline_is_still_wrong_and_is_fixed_when_its_subject_is_timed():
    """A job that cannot be built names no baseline."""
    at_gate = timed(1.4, verdict="FAILED", reason="outputs differ")
    unbuilt = timed(1.4, verdict="FAILED", reason="no layer was replaced", baseline="original")
    assert kinds(at_gate, unbuilt) == kinds(unbuilt, at_gate) == ["still wrong"]
    assert kinds(unbuilt, timed(1.4)) == ["fixed"]
    assert kinds(timed(1.4), unbuilt) == ["wrong"]


@pytest.mark.parametrize("field", ["dtype", "device", "workload", "phase", "shape", "baseline", "subject"])
def test_only_like_timings_are_compared_and_the_others_are_listed(field):
    found = compare.compare(timed(1.4), timed(1.0, **{field: "other"}))
    assert ([c.kind for c in found.changes], found.timings_compared) == (["missing"], 0)
    assert (len(found.only_in_base), len(found.only_in_head)) == (1, 1)


def test_timings_of_different_clocks_are_different_rows():
    assert compare.compare(timed(1.4), timed(1.0, clock="device")).timings_compared == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"machine": "other"},
            "The machines differ, so no timing is compared: "
            "5f2c9a (Example 9000, 2.4 GHz, 8 cores), then other (Example 9000, 2.4 GHz, 8 cores).",
        ),
        ({"threads": 4}, "The thread counts differ, so no timing is compared: 2, then 4."),
    ],
)
def test_timings_of_unlike_machines_are_not_compared_and_the_reason_is_said(changes, sentence):
    head = msgspec.structs.replace(timed(1.0), environment=synthetic.environment(**changes))
    found = compare.compare(timed(1.4), head)
    assert (found.timings_compared, found.changes, found.only_in_base) == (0, (), ())
    assert sentence in found.differences


def test_what_differs_around_the_runs_is_said_in_sentences():
    packages = {"torch": "2.14.0", "transformers": "5.23.0", "scipy": "1.17"}
    head = synthetic.run(
        profile="quick",
        seed=9,
        complete=False,
        environment=synthetic.environment(packages=packages, git="77aa"),
        verdicts=(synthetic.verdict(tolerance=1e-6),),
    )
    assert compare.compare(synthetic.run(), head).differences == (
        "The harness commit differs: 9e3b1c7, then 77aa.",
        "Packages differ: diffusers 0.42.1, then absent; scipy absent, then 1.17; torch 2.13.0, then 2.14.0.",
        "The profile differs: nightly, then quick.",
        "The seed differs: 20260, then 9.",
        "The head run was cut short: what it lacks may only not have been reached.",
        "The tolerance of layer equality on bert differs: 1.0e-10, then 1.0e-06.",
    )


@pytest.mark.parametrize("outcome", ["error", "unavailable"])
def test_a_tolerance_that_only_one_side_has_is_no_difference(outcome):
    without = judged(outcome=outcome, tolerance=None)
    assert compare.compare(without, judged()).differences == compare.compare(judged(), without).differences == ()


def test_changes_are_told_before_the_circumstances():
    found = compare.compare(judged(), synthetic.run("y", seed=9, timings=(), verdicts=(synthetic.verdict(outcome="error"),)))
    page = html.render_html(synthetic.run(seed=9, verdicts=(synthetic.verdict(outcome="error"),)), synthetic.run("a"))
    texts = ("\n".join(terminal.comparison_lines(found)), markdown.render_comparison_markdown(found), page)
    assert all(text.index("layer equality: error (before: held)") < text.index("The seed differs") for text in texts)


def test_runs_with_nothing_in_common_are_an_error_that_names_what_each_holds():
    with pytest.raises(
        compare.ComparisonError,
        match=r"^runs a and b have nothing in common: bert against opt; "
        r"compare runs over the same cases and properties$",
    ):
        compare.compare(synthetic.run("a"), synthetic.run("b", verdicts=(), timings=(synthetic.timing("opt"),)))


def test_runs_that_share_only_timings_of_different_machines_are_an_error_that_says_why():
    base, head = (
        synthetic.run("a", verdicts=()),
        synthetic.run("b", verdicts=(), environment=synthetic.environment("other")),
    )
    with pytest.raises(compare.ComparisonError, match=r"nothing in common: 1 timing would match, but the machines differ"):
        compare.compare(base, head)


def test_runs_of_the_same_checks_by_different_plans_are_an_error_that_says_so():
    base, head = (
        synthetic.run(name, verdicts=(synthetic.verdict(policy=f"Policy{plan}"),), timings=())
        for name, plan in (("a", ""), ("b", ", plan packed"))
    )
    with pytest.raises(compare.ComparisonError, match=r"judged different policies or plans, Policy against Policy, plan packed$"):
        compare.compare(base, head)


def test_fail_on_names_the_changes_that_it_forbids():
    base, head = synthetic.full_run(), synthetic.full_run(faulty=True, factors={"gpt2": 0.8})
    found = compare.compare(base, head)
    assert {c.kind for c in compare.violations(found, ["wrong"])} == {"wrong"}
    assert {c.kind for c in compare.violations(found, ["slower"])} == {"slower"}
    assert {c.kind for c in compare.violations(found, ["refused"])} == {"unavailable"}
    assert compare.violations(found, []) == ()
    assert compare.violations(compare.compare(base, base), ["wrong", "slower", "refused"]) == ()


def test_an_unknown_category_of_fail_on_is_refused_with_those_there_are():
    with pytest.raises(compare.ComparisonError, match=r"^--fail-on takes wrong, slower, refused, missing; not broken$"):
        compare.violations(compare.compare(synthetic.run(), synthetic.run()), ["broken"])


@given(run=strategies.runs())
def test_any_run_compares_with_itself_without_a_change_but_what_is_wrong_still(run):
    try:
        found = compare.compare(run, run)
    except compare.ComparisonError:
        assert not run.verdicts
        assert not run.timings
        return
    assert {change.kind for change in found.changes} <= {"still wrong"}
    assert found.counted.startswith("0 changes")


def test_every_rendering_of_a_comparison_holds_every_change():
    found = compare.compare(synthetic.full_run(), synthetic.full_run(faulty=True, factors={"gpt2": 0.8}))
    lines = list(terminal.comparison_lines(found))
    assert sum(line.startswith(("wrong: ", "slower: ", "faster: ", "unavailable: ")) for line in lines) == len(found.changes)
    assert f"**Slower: {len(found.of('slower'))}**" in markdown.render_comparison_markdown(found)


def test_two_full_runs_are_read_and_compared_within_a_second(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        storage.write(synthetic.full_run(name, seed=seed), tmp_path / name)
    start = time.process_time()
    compare.compare(storage.read(tmp_path / "a"), storage.read(tmp_path / "b"))
    assert time.process_time() - start < 1
