"""Markdown and terminal: foreign text stays text."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from markdown_it import MarkdownIt
from msgspec.structs import replace
from rich.console import Console

from reports import compare, markdown, record, terminal, wording
from reports.summary import summarize
from reports.tests import strategies, synthetic

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def inline(source):
    """Kinds of inline tokens in a paragraph, and its text."""
    (token,) = [t for t in PARSER.parse(source) if t.type == "inline"]
    return {child.type for child in token.children}, "".join(child.content for child in token.children)


@given(text=strategies.hostile)
def test_any_text_in_a_table_cell_is_shown_as_it_is_and_nothing_more(text):
    source = f"| a | b |\n| --- | --- |\n| x {markdown.escape(text)} | last |"
    cells = [t for t in PARSER.parse(source) if t.type == "inline"]
    assert [cell.content for cell in cells[:3:2]] == ["a", cells[2].content]
    assert len(cells) == 4
    assert cells[3].content == "last"
    assert {child.type for child in cells[2].children} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[2].children) == f"x {wording.one_line(text)}".strip()


@given(text=strategies.hostile)
def test_any_text_in_a_sentence_is_shown_as_it_is_and_nothing_more(text):
    kinds, shown = inline(f"x {markdown.escape(text)}")
    assert kinds <= {"text", "text_special"}
    assert shown == f"x {wording.one_line(text)}".strip()


@given(script=strategies.hostile)
def test_no_script_closes_its_own_fence(script):
    verdict = synthetic.verdict(outcome="failed", failure=_failing(script=script or "x"))
    tokens = PARSER.parse(markdown.render_markdown(synthetic.run(verdicts=(verdict,))))
    assert [t.content for t in tokens if t.type == "fence"] == [wording.plain(script or "x").replace("\r\n", "\n") + "\n"]


@given(run=strategies.runs())
def test_any_run_becomes_markdown_whose_only_html_is_the_pages_own(run):
    allowed = ("<details><summary>Script</summary>", "</details>", "<sub>", "</sub>", "<br>")
    for token in PARSER.parse(markdown.render_markdown(run, run)):
        for part in [token, *(token.children or [])]:
            if part.type in ("html_block", "html_inline"):
                assert part.content.strip() in allowed


def test_the_summary_answers_first_and_shows_matrix_slowdowns_and_evidence():
    text = markdown.render_markdown(synthetic.full_run("b", faulty=True), synthetic.full_run("a"))
    assert text.startswith("## ❌ 3 of 99 verdicts did not hold")
    for part in (
        "### Since run a",
        "### Correctness",
        "### Slower than the original",
        "### Latency",
        "### Evidence",
        "harness reproduce b 'bloom/layer equality/1'",
    ):
        assert part in text


def test_the_matrix_sums_up_what_held_everywhere_and_shows_examples_where_something_did_not():
    judged = {"bert": {"cache": 60, "graph": 50}, "opt": {"cache": 40, "graph": 30}, "vae": {"cache": 20}}
    verdicts = [synthetic.verdict(case, name, examples=n) for case, asked in judged.items() for name, n in asked.items()]
    verdicts[1] = replace(verdicts[1], outcome="vacuous", layers_replaced=0)
    text = markdown.render_markdown(synthetic.run(verdicts=tuple(verdicts)))
    assert "✓ 1 property held wherever judged (bert, opt, vae; 120 examples): cache.\n" in text
    assert "| property | bert | opt | vae |\n" in text
    assert "| **graph** | **∅ vacuous**<br>50 ex, 0 layers | ✓ 30 |  |\n" in text
    assert "| **cache**" not in text


def test_a_report_of_every_case_and_many_properties_is_read_on_one_page():
    cases = [*synthetic.CASES, "mistral"]
    ways = ("plainly", "again", "by turns", "when moved", "in lower dtypes", "once more")
    names = [f"{what} {way}" for what in synthetic.STATEMENTS for way in ways]
    verdicts = [synthetic.verdict(case, name) for case in cases for name in names]
    for place in range(0, len(verdicts), len(verdicts) // 8):
        verdicts[place] = replace(verdicts[place], outcome="failed", failure=_failing(script="x = 1\n" * 500))
    run = replace(synthetic.full_run(), verdicts=tuple(verdicts))
    assert len(cases) == 14 and len(names) == 54
    assert len(markdown.render_markdown(run, replace(run, id="b")).encode()) < 60_000


def test_a_summary_in_which_everything_failed_stays_far_below_a_megabyte():
    wrong = [
        synthetic.verdict("bert", f"p{n}", outcome="failed", reason="x" * 9_000, failure=_failing(script="`" * 90_000))
        for n in range(500)
    ]
    assert len(markdown.render_markdown(synthetic.run(verdicts=tuple(wrong))).encode()) < 600_000


@pytest.mark.parametrize(("lines", "shown"), [(2_000, True), (2_001, False)])
def test_the_first_failure_of_a_case_has_its_script_whole_or_not_at_all_and_every_one_its_command(lines, shown):
    scripts = ("x = 1\n" * lines, "y = 1\n")
    verdicts = [
        synthetic.verdict("bert", f"p{n}", outcome="failed", failure=_failing(id=f"bert/p{n}", script=script))
        for n, script in enumerate(scripts)
    ]
    text = markdown.render_markdown(synthetic.run(verdicts=tuple(verdicts)), place="runs/here")
    assert text.count("x = 1\n") == lines * shown
    assert "y = 1" not in text
    assert all(f"Again: harness reproduce runs/here bert/p{n}" in text for n in range(2))


def test_commands_name_the_folder_where_it_is_known_and_the_id_elsewhere():
    run = synthetic.run("r", verdicts=(synthetic.verdict(outcome="failed", failure=_failing(id="bert/cache")),))
    for place, named in ((None, "r"), ("runs/here", "runs/here")):
        command = f"harness reproduce {named} bert/cache"
        stream = io.StringIO()
        Console(file=stream, width=400).print(terminal.render_terminal(run, place))
        assert command in stream.getvalue()
        assert any(command in line for line in terminal.run_lines(run, place))
        assert command in markdown.render_markdown(run, place=place)


def test_a_run_without_anything_in_common_with_the_previous_one_says_so():
    text = markdown.render_markdown(synthetic.run("b"), synthetic.run("a", verdicts=(), timings=(synthetic.timing("opt"),)))
    assert "Not comparable: runs a and b have nothing in common" in text


def test_a_full_run_becomes_markdown_within_two_seconds():
    run, previous = synthetic.full_run("b", faulty=True), synthetic.full_run("a", seed=2)
    start = time.process_time()
    markdown.render_markdown(run, previous)
    assert time.process_time() - start < 2


@given(run=strategies.runs())
def test_no_run_sends_a_control_character_to_the_terminal(run):
    for terminal_there in (False, True):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal_there, color_system=None, width=100, legacy_windows=False)
        terminal.show(console, terminal.render_terminal(run), terminal.run_lines(run))
        text = stream.getvalue()
        for style in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m", "\n"):
            text = text.replace(style, "")
        assert text.isprintable()


def test_a_pipe_gets_whole_lines_without_boxes_or_escapes():
    stream = io.StringIO()
    run = synthetic.full_run(faulty=True)
    terminal.show(Console(file=stream, width=40), terminal.render_terminal(run), terminal.run_lines(run))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "3 of 99 verdicts did not hold; 18 rows could not be timed"
    assert any(line.startswith("bloom: layer equality: failed, example 240: ") for line in lines)
    assert not any(set(line) & set("│┃─━\x1b") for line in lines)


def test_a_terminal_gets_tables_with_a_symbol_and_a_word_for_what_is_wrong():
    stream = io.StringIO()
    run = synthetic.full_run(faulty=True)
    terminal.show(Console(file=stream, width=160, force_terminal=True, color_system=None), terminal.render_terminal(run), ())
    assert all(word in stream.getvalue() for word in ("✗ failed", "∅ vacuous", "! error", "▼"))


def test_a_comparison_on_a_terminal_holds_what_its_lines_hold():
    found = compare.compare(synthetic.full_run(), synthetic.full_run(faulty=True))
    stream = io.StringIO()
    Console(file=stream, width=4_000).print(terminal.render_comparison(found))
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == list(terminal.comparison_lines(found))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.duration(1.5e-3), "1.50 ms"),
        (wording.duration(12.34e-6), "12.3 µs"),
        (wording.duration(5e-9), "5.00 ns"),
        (wording.duration(90), "90.0 s"),
        (wording.duration(0.99999), "1.00 s"),
        (wording.duration(1311), "22 min"),
        (wording.duration(9000), "2.5 h"),
        (wording.size(512), "512 B"),
        (wording.size(61 * 2**20), "61.0 MiB"),
        (wording.size(2**20 - 1), "1.00 MiB"),
        (wording.size(3 * 2**40), "3.00 TiB"),
        (wording.rate(1.9e11, "FLOP/s"), "190 GFLOP/s"),
        (wording.error(None), "–"),
        (wording.error(0.0), "0"),
        (wording.error(1.7976931348623157e308), "not finite"),
        (wording.error(3.14e-14), "3.1e-14"),
        (wording.ratio(1.254), "1.25×"),
        (wording.percent(0.017), "1.7%"),
        (wording.percent(0.42), "42%"),
        (wording.change(-0.151), "−15 %"),
        (wording.change(0.021), "+2.1 %"),
        (wording.change(-1e-5), "0.0 %"),
        (wording.count(1, "layer"), "1 layer"),
        (wording.count(1200, "layer"), "1,200 layers"),
        (wording.plain("a\u202eb\x00"), "a\\u202eb\\x00"),
        (wording.moment("2026-03-14T04:10:00+02:00"), "2026-03-14 02:10 UTC"),
        (wording.moment("yesterday"), "yesterday"),
    ],
)
def test_a_figure_is_written_with_its_unit_and_the_digits_it_deserves(shown, expected):
    assert shown == expected


def _failing(**changes):
    return replace(synthetic.failure(), **changes)


def test_values_and_pairs_that_were_never_judged_are_told_apart():
    missed = ("role=decoder with cross-attention", "batch=1 with way=decode", "role=decoder with cross-attention with way=encode")
    coverage = record.Coverage(case="vae", axes={}, pairs_seen=1, pairs_claimed=3, missed=missed)
    assert (coverage.missed_values, coverage.missed_pairs) == (missed[:1], missed[1:])
    remarks = summarize(synthetic.run(coverage=(coverage,))).remarks
    assert "1 claimed value was never judged: role=decoder with cross-attention of vae." in remarks
    assert "2 claimed pairs of values were never judged: vae." in remarks


def test_three_values_that_were_never_judged_are_named_and_the_others_counted():
    coverage = [record.Coverage(case=case, axes={}, missed=("batch=1", "batch=2")) for case in ("bert", "opt", "vae")]
    (remark,) = summarize(synthetic.run(coverage=tuple(coverage))).remarks
    assert remark == "6 claimed values were never judged: batch=1 of bert, batch=2 of bert, batch=1 of opt and 3 more."


def test_a_quick_run_is_not_reproached_with_pairs_it_has_no_examples_for():
    coverage = record.Coverage(case="vae", axes={}, missed=("batch=1 with way=decode",))
    assert summarize(synthetic.run(profile="quick", coverage=(coverage,))).remarks == ()


def test_a_row_that_could_not_be_timed_is_named_with_its_reason_on_a_page_and_on_a_terminal():
    run = synthetic.run(timings=(synthetic.timing("opt", verdict="FAILED", reason="outputs differ", **synthetic.UNTIMED),))
    stream = io.StringIO()
    terminal.show(Console(file=stream, width=400, force_terminal=True, color_system=None), terminal.render_terminal(run), ())
    text = markdown.render_markdown(run)
    assert "### Not timed, because something is wrong: 1" in text
    assert "outputs differ" in text
    assert ": not timed: outputs differ" in stream.getvalue()
