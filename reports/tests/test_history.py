"""Many runs as series, and the regressions in them."""

from __future__ import annotations

import random
import shutil
import time

import msgspec
import pytest

from reports import history, html, storage, terminal, trends
from reports.tests import synthetic


def nights(folder, ratios, *, outcomes=None, machine="5f2c9a", first=0):
    """One run a night with the given ratios (and outcomes) of one row."""
    for number, ratio in enumerate(ratios):
        created = f"2026-{1 + number // 28:02}-{1 + number % 28:02}T03:00:00Z"
        outcome = outcomes[number] if outcomes else "held"
        run = synthetic.run(
            f"{machine}-{number + first:03}",
            created=created,
            environment=synthetic.environment(machine, git=f"c{number}"),
            timings=(synthetic.timing(at=ratio, samples=2),),
            verdicts=(synthetic.verdict(outcome=outcome, reason="Because."),),
        )
        storage.write(run, folder / run.id)


def noisy(*levels, length=30, noise=0.004, seed=0):
    source = random.Random(seed)
    return [level * (1 + source.gauss(0, noise)) for level in levels for _ in range(length)]


def find(folder):
    past = history.read_history(folder)
    return past, trends.find_trends(past)


def test_runs_are_ordered_by_time_and_make_one_series_a_row(tmp_path):
    nights(tmp_path, [1.1, 1.2, 1.3])
    past = history.read_history(tmp_path)
    assert [run.id for run in past.runs] == ["5f2c9a-000", "5f2c9a-001", "5f2c9a-002"]
    assert [[point.ratio for point in points] for points in past.timings.values()] == [[1.1, 1.2, 1.3]]
    assert list(past.properties) == [("bert", "HFBertLayerPolicy", "layer equality")]


def test_runs_of_two_machines_lie_in_one_folder_and_in_two_series(tmp_path):
    nights(tmp_path / "one", [1.1, 1.2])
    nights(tmp_path / "other", [1.4], machine="b07")
    past = history.read_history(tmp_path)
    assert sorted((key.machine, len(points)) for key, points in past.timings.items()) == [("5f2c9a", 2), ("b07", 1)]


def test_bad_records_cost_one_line_each_and_the_good_ones_are_used(tmp_path):
    nights(tmp_path, [1.1, 1.2])
    good = (tmp_path / "5f2c9a-000" / storage.RECORD_NAME).read_bytes()
    bad = {
        "half": good[: len(good) // 2],
        "foreign": b'{"schema": 9}',
        "empty": b"",
        "time": good.replace(b"2026-01-01T", b"yesterday "),
    }
    for name, data in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / storage.RECORD_NAME).write_bytes(data)
    past = history.read_history(tmp_path)
    assert len(past.runs) == 2
    assert len(past.problems) == len(bad)
    assert all(sum(name in line for line in past.problems) == 1 for name in bad)
    assert not any("\n" in line for line in past.problems)
    assert sum(line.startswith("left out: ") for line in terminal.history_lines(past, trends.find_trends(past))) == len(bad)


def test_a_run_that_was_copied_twice_counts_once(tmp_path):
    nights(tmp_path / "here", [1.1, 1.2])
    shutil.copytree(tmp_path / "here", tmp_path / "copied")
    past = history.read_history(tmp_path)
    assert (len(past.runs), past.problems) == (2, ())


def test_of_two_copies_of_a_run_the_complete_one_counts(tmp_path):
    storage.write(synthetic.run("r", complete=False, timings=()), tmp_path / "a")
    storage.write(synthetic.run("r"), tmp_path / "b")
    past = history.read_history(tmp_path)
    assert (len(past.runs), past.runs[0].complete, len(past.timings), past.problems) == (1, True, 1, ())


def test_two_different_runs_with_one_id_are_reported_and_one_counts(tmp_path):
    storage.write(synthetic.run("r", seed=1), tmp_path / "a")
    storage.write(synthetic.run("r", seed=2), tmp_path / "b")
    past = history.read_history(tmp_path)
    assert len(past.runs) == 1
    (line,) = past.problems
    assert line.endswith("with other contents; only that one counts")
    assert "run id r is also in" in line


def test_a_time_without_a_zone_is_taken_as_utc(tmp_path):
    nights(tmp_path, [1.1])
    storage.write(synthetic.run("later", created="2026-05-01T00:00:00"), tmp_path / "later")
    assert history.read_history(tmp_path).runs[-1].id == "later"


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda p: None, "no run record"), (lambda p: p.rmdir(), "no such folder; give a folder that holds run folders")],
)
def test_a_folder_without_runs_is_an_error_in_one_line(tmp_path, make, message):
    folder = tmp_path / "runs"
    folder.mkdir()
    make(folder)
    with pytest.raises(history.HistoryError, match=f"^{folder}: {message}$"):
        history.read_history(folder)


def test_a_folder_of_bad_records_only_is_an_error_that_shows_the_first(tmp_path):
    (tmp_path / storage.RECORD_NAME).write_text("{")
    with pytest.raises(history.HistoryError, match=r"no readable run record; the first: .*not a run record"):
        history.read_history(tmp_path)


def test_a_lasting_drop_is_a_regression_with_the_runs_between_which_it_began(tmp_path):
    nights(tmp_path, noisy(1.40, 1.30))
    _, found = find(tmp_path)
    (regression,) = found.regressions
    assert (regression.last_good.id, regression.first_bad.id) == ("5f2c9a-029", "5f2c9a-030")
    assert regression.effect == pytest.approx(-0.071, abs=0.01)
    assert regression.differences == ("The harness commit differs: c29, then c30.",)
    assert "%); not recovered" in regression.sentence


def test_a_drop_that_came_back_is_no_regression(tmp_path):
    nights(tmp_path, noisy(1.40, 1.30, 1.40))
    past, found = find(tmp_path)
    assert found.regressions == ()
    assert [len(levels) for levels in found.levels.values()] == [3]
    assert next(terminal.history_lines(past, found)).startswith("0 regressions have not recovered")


def test_a_drop_that_came_back_halfway_still_stands(tmp_path):
    nights(tmp_path, noisy(1.40, 1.20, 1.30))
    _, found = find(tmp_path)
    (regression,) = found.regressions
    assert ", now 1.30×; not recovered" in regression.sentence


def test_one_slow_night_is_not_a_level():
    series = noisy(1.4, length=40)
    series[20] *= 0.8
    series[-1] *= 0.8
    assert len(trends.find_levels(series)) == 1


def test_a_steady_series_has_one_level_however_long_and_noisy():
    for seed in range(20):
        for noise in (0.0, 0.003, 0.03):
            assert len(trends.find_levels(noisy(1.3, length=300, noise=noise, seed=seed))) == 1


def test_a_property_that_fails_on_one_machine_is_not_hidden_by_another_that_holds(tmp_path):
    nights(tmp_path, [1.1] * 4, outcomes=["held", "held", "failed", "failed"])
    nights(tmp_path, [1.1] * 5, machine="b07")
    _, found = find(tmp_path)
    (regression,) = found.regressions
    assert regression.subject == "bert: layer equality (HFBertLayerPolicy), machine 5f2c9a"
    assert (regression.last_good.id, regression.first_bad.id) == ("5f2c9a-001", "5f2c9a-002")
    assert regression.sentence == "failed in the last 2 runs: Because."


def test_a_property_that_holds_again_or_never_held_is_told_apart(tmp_path):
    nights(tmp_path / "a", [1.1] * 3, outcomes=["held", "failed", "held"])
    nights(tmp_path / "b", [1.1] * 2, outcomes=["error", "error"], machine="b07")
    past, found = find(tmp_path)
    assert found.regressions == ()
    (never,) = found.never_held
    assert (never.subject, never.first.id) == ("bert: layer equality (HFBertLayerPolicy), machine b07", "b07-000")
    head, line = terminal.history_lines(past, found)
    assert head.startswith("0 regressions have not recovered, 1 never held, in ")
    assert ": never held, in 2 runs; error in the last: Because. First judged in run b07-000 (2026-" in line
    page = html.render_history_html(past, found)
    assert "or better; 1 never held" in page
    assert '<div class="verdict bad">' in page
    assert "Held until" not in page


def test_properties_that_held_throughout_are_folded_on_the_trend_page(tmp_path):
    verdicts = (synthetic.verdict(name="cache"), synthetic.verdict(name="graph"))
    keep(tmp_path, 0, verdicts=(*verdicts, synthetic.verdict(name="refusal", outcome="failed", reason="Because.")))
    keep(tmp_path, 1, verdicts=(*verdicts, synthetic.verdict(name="refusal")))
    page = html.render_history_html(*find(tmp_path))
    shown, folded = page[page.index('<section aria-labelledby="properties"') :].split("<details>")
    assert "Held in every run that judged them: 2 property series" in folded
    assert "<td>cache</td>" in folded and "<td>cache</td>" not in shown
    assert "<td>refusal</td>" in shown and "<td>refusal</td>" not in folded


def keep(folder, number, **parts):
    storage.write(synthetic.run(f"r{number}", created=f"2026-01-{1 + number:02}T03:00:00Z", **parts), folder / f"{number}")


def test_what_went_wrong_at_once_is_one_regression_that_names_some_of_it(tmp_path):
    names = ("cache", "hooks", "padding", "pickle", "revert")
    for number, outcome in enumerate(("held", "failed", "failed")):
        verdicts = [synthetic.verdict(name=name, outcome=outcome, reason=f"Because of {name}.") for name in names]
        later = synthetic.verdict(name="settings", outcome="failed" if number == 2 else "held", reason="Later.")
        keep(tmp_path, number, timings=(), verdicts=(*verdicts, later))
    one, other = find(tmp_path)[1].regressions
    assert one.subject == "bert: 5 properties (HFBertLayerPolicy), machine 5f2c9a"
    assert one.sentence == "failed in the last 2 runs: cache: Because of cache; also hooks, padding, pickle and 1 more"
    assert (one.last_good.id, one.first_bad.id) == ("r0", "r1")
    assert other.subject == "bert: settings (HFBertLayerPolicy), machine 5f2c9a"
    assert other.sentence == "failed in the last run: Later."


def test_a_property_that_fails_by_one_plan_is_not_hidden_by_another_that_holds(tmp_path):
    plain, graphed = "HFBertLayerPolicy", "HFBertLayerPolicy, plan graphed, on cuda"
    for number in range(4):
        policy, outcome = ((graphed, "failed"), (plain, "held"))[number % 2]
        keep(tmp_path, number, timings=(), verdicts=(synthetic.verdict(policy=policy, outcome=outcome, reason="Because."),))
    past, found = find(tmp_path)
    (never,) = found.never_held
    assert never.subject == f"bert: layer equality ({graphed}), machine 5f2c9a"
    assert never.sentence == "never held, in 2 runs; failed in the last: Because."
    assert graphed in html.render_history_html(past, found)


FAILED = {"verdict": "FAILED", "reason": "outputs differ", **synthetic.UNTIMED}


def test_a_row_that_is_no_longer_timed_is_a_regression_until_it_is_timed_again(tmp_path):
    for number, changes in enumerate(({}, {}, FAILED, FAILED)):
        keep(tmp_path, number, timings=(synthetic.timing(**changes),))
    _, found = find(tmp_path)
    (regression,) = found.regressions
    assert (regression.last_good.id, regression.first_bad.id) == ("r1", "r2")
    assert regression.subject.startswith("bert: bert-base prefill")
    assert regression.sentence == "FAILED in the last 2 runs: outputs differ"
    keep(tmp_path, 4, timings=(synthetic.timing(verdict="VOID"),))
    assert find(tmp_path)[1].regressions == ()


def test_a_job_that_could_not_be_built_is_a_regression_until_its_subject_is_timed(tmp_path):
    keep(tmp_path, 0, timings=(synthetic.timing(),))
    keep(tmp_path, 1, timings=(synthetic.timing(**FAILED, baseline="original"),))
    keep(tmp_path, 2, timings=(synthetic.timing(subject="replaced + compile"),))
    (regression,) = find(tmp_path)[1].regressions
    assert (regression.last_good.id, regression.first_bad.id) == ("r0", "r1")
    keep(tmp_path, 3, timings=(synthetic.timing(),))
    assert find(tmp_path)[1].regressions == ()


def test_the_trend_page_shows_regressions_series_and_what_was_left_out(tmp_path):
    nights(tmp_path, noisy(1.40, 1.30))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / storage.RECORD_NAME).write_text("{<script>")
    page = html.render_history_html(*find(tmp_path))
    assert "1 regression has not recovered" in page
    assert "Held until run 5f2c9a-029" in page
    assert "1 record was left out" in page
    assert "<polyline" in page
    assert "<script" not in page


def test_two_hundred_full_runs_are_read_and_searched_within_their_share_of_five_seconds(tmp_path):
    text = msgspec.json.encode(synthetic.full_run("run-0000")).decode()
    for number in range(200):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / storage.RECORD_NAME).write_text(text.replace('"run-0000"', f'"run-{number:04}"'))
    taken = []
    for _ in range(3):
        start = time.process_time()
        history.read_history(tmp_path)
        taken.append(time.process_time() - start)
    assert min(taken) < 1
