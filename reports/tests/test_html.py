"""The page of a run: complete, safe, accessible, and quiet in a real browser."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from msgspec.structs import replace

from reports import html, record, terminal, wording
from reports.tests import strategies, synthetic

VOID_TAGS = {"meta", "link", "br", "line", "circle", "rect", "polyline"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags with their attributes, the text outside of ``style``, and whether every tag is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def every(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full():
    return Page(html.render_html(synthetic.full_run("b", faulty=True), synthetic.full_run("a", seed=2)))


@given(run=strategies.runs())
def test_any_run_becomes_a_page_with_no_tag_attribute_or_character_that_is_not_its_own(run):
    source = html.render_html(run, run)
    page = Page(source)
    assert not {"script", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(c.isprintable() or c in "\n\t" for c in source)


@given(text=strategies.hostile)
def test_any_text_is_shown_on_the_page_as_it_is(text):
    page = Page(html.render_html(synthetic.run(command=text)))
    assert wording.plain(text) in "".join(page.text).replace("\r", "")


def test_a_huge_text_is_cut_and_says_how_much_is_missing():
    page = html.render_html(synthetic.run(command="x" * 5_000_000))
    assert len(page) < 100_000
    assert "(4,998,000 characters left out; run.json has them)" in page


def test_the_page_needs_nothing_from_elsewhere_and_forbids_it(full):
    links = [a[name] for _, a in full.tags for name in ("href", "src") if name in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert any("default-src 'none'" in meta.get("content", "") for meta in full.every("meta"))


def test_every_link_within_the_page_leads_somewhere(full):
    places = [a["id"] for _, a in full.tags if "id" in a]
    assert len(places) == len(set(places))
    assert {a["href"][1:] for a in full.every("a")} <= set(places)
    assert {a["aria-labelledby"] for _, a in full.tags if "aria-labelledby" in a} <= set(places)


def test_every_table_has_a_caption_and_every_header_a_scope(full):
    assert len(full.every("caption")) == len(full.every("table")) > 5
    assert all("scope" in header for header in full.every("th"))


def test_every_drawing_is_described_or_hidden_from_those_who_cannot_see_it(full):
    assert all("aria-label" in svg or svg.get("aria-hidden") == "true" for svg in full.every("svg"))


def test_headings_descend_one_level_at_a_time(full):
    levels = [int(tag[1]) for tag, _ in full.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({}, "Nothing is wrong: the one verdict held"),
        (
            {"verdicts": (synthetic.verdict(outcome="failed", failure=synthetic.failure()),)},
            "1 of 1 verdict did not hold",
        ),
        (
            {"timings": (synthetic.timing(verdict="FAILED", ratio=None),)},
            "1 row could not be timed",
        ),
        ({"verdicts": (), "timings": ()}, "Nothing was judged in this run"),
        ({"verdicts": ()}, "Outputs agreed wherever they were timed; no property was judged"),
        ({"verdicts": (synthetic.verdict(outcome="unavailable"),), "timings": ()}, "Nothing was judged in this run"),
        ({"complete": False}, "The one verdict so far held, but the run was cut short"),
    ],
)
def test_the_headline_says_whether_anything_is_wrong_and_never_praises_an_empty_run(changes, headline):
    page = Page(html.render_html(synthetic.run(**changes)))
    assert headline in "".join(page.text)


def test_the_first_screen_names_what_is_wrong_and_what_got_slower():
    run = synthetic.run(
        "b",
        verdicts=(synthetic.verdict(outcome="vacuous", reason="No layer was replaced."),),
        timings=(synthetic.timing(at=0.8),),
    )
    source = html.render_html(run, synthetic.run("a"))
    first = "".join(Page(source[: source.index("<nav")] + "</body></html>").text)
    assert "No layer was replaced." in first
    assert "−43 % bert: bert-base prefill, batch 1, 128 tokens, float32 on cpu, replaced against original sdpa" in first
    assert "0.80× bert: bert-base prefill" in first


def test_without_a_comparable_run_the_page_does_not_claim_that_nothing_got_slower():
    page = html.render_html(synthetic.run())
    assert "Not known: there is no earlier run to compare with." in page
    other = replace(synthetic.run("a"), environment=synthetic.environment("other"))
    assert "Not known: no timing of run a is comparable" in html.render_html(synthetic.run(), other)
    apart = html.render_html(synthetic.run(), synthetic.run("a", verdicts=(), timings=()))
    assert "have nothing in common" in apart


def test_a_failure_is_shown_with_its_example_neighbour_stages_and_script(full):
    text = "".join(full.text)
    for part in (
        "departs from the original's by 3.2e-02",
        "ALiBi",
        "in this folder: harness reproduce . 'bloom/layer equality/1'",
        "torch.manual_seed(7)",
    ):
        assert part in text


def failing(*failures):
    return synthetic.run(
        verdicts=tuple(
            synthetic.verdict("bloom", f"property {number}", outcome="failed", failure=failure)
            for number, failure in enumerate(failures, 1)
        )
    )


def evidence(run):
    page = html.render_html(run)
    return page[page.index('<section aria-labelledby="evidence"') : page.index('<section aria-labelledby="latency"')]


def test_a_script_is_shown_whole_or_left_out_with_its_length_and_the_command_that_prints_it():
    shown = evidence(failing(replace(synthetic.failure(), script="x = 1\n" * 2_000)))
    assert shown.count("x = 1\n") == 2_000
    left_out = evidence(failing(replace(synthetic.failure(), script="x = 1\n" * 2_001)))
    assert "x = 1" not in left_out
    assert "which prints the 2,001 lines that are too many for this page" in left_out
    assert "harness reproduce . &#39;bloom/layer equality/1&#39;" in left_out


def test_failures_of_a_case_that_depart_at_the_same_stage_are_shown_once_and_the_others_in_a_line_each():
    elsewhere = tuple(s for s in synthetic.failure().stages if s.name != "ALiBi")
    same = [replace(synthetic.failure(), id=f"bloom/{n}", message=f"It departs, {n}.") for n in range(3)]
    other = replace(same[0], id="bloom/other", stages=(*elsewhere, record.Stage(name="MLP", own_error=1e-9, inherited_error=0.0)))
    page = evidence(failing(same[0], other, same[1], same[2]))
    first, second = page.split("</article>")[:2]
    assert page.count("<article") == 2 and "more depart" not in second
    folded = first[first.index("<summary>2 more depart at the same stage</summary>") :]
    for number, failure in ((3, same[1]), (4, same[2])):
        assert f'id="evidence-{number}"' in folded
        assert f"property {number}: {failure.message} <code>harness reproduce . {failure.id}</code>" in folded
    assert folded.count("<li") == 2


def test_failures_without_a_departing_stage_or_of_two_cases_are_not_taken_for_one():
    failure = replace(synthetic.failure(), stages=synthetic.failure().stages[:2])
    assert evidence(failing(failure, failure)).count("<article") == 2
    wrong = [synthetic.verdict(case, outcome="failed", failure=synthetic.failure()) for case in ("bert", "opt")]
    assert evidence(synthetic.run(verdicts=tuple(wrong))).count("<article") == 2


def test_axes_that_tell_something_are_shown_and_the_others_folded():
    shown, folded = evidence(failing(synthetic.failure())).split(
        "<details><summary>3 axes at the simplest value in both</summary>"
    )
    assert [axis for axis in synthetic.failure().example if f'<th scope="row">{axis}' in shown] == ["heads", "padding"]
    assert [axis for axis in synthetic.failure().example if f'<th scope="row">{axis}' in folded] == ["layers", "batch", "mask"]


def test_evidence_that_could_not_be_gathered_is_named_beside_what_was():
    failure = replace(synthetic.failure(), notes=("The stages could not be compared.",))
    run = synthetic.run(verdicts=(synthetic.verdict(outcome="failed", failure=failure),))
    assert "The stages could not be compared." in html.render_html(run)


@pytest.mark.parametrize(("number", "folded"), [(10, False), (11, True)])
def test_every_pair_that_was_never_judged_is_in_the_coverage_section_folded_where_there_are_many(number, folded):
    missed = ("batch=9", *(f"batch={n} with way=decode" for n in range(number)))
    page = html.render_html(synthetic.run(profile="quick", coverage=(record.Coverage(case="vae", axes={}, missed=missed),)))
    section = page[page.index('<h2 id="coverage">') :]
    assert all(one in section for one in missed)
    assert (f"<summary>{number} pairs were never judged</summary>" in section) is folded


def test_budgets_of_lower_dtypes_are_shown_with_what_was_used_of_them():
    budget = record.ErrorBudget(
        case="opt",
        policy="HFOPTLayerPolicy",
        dtype="float16",
        examples=240,
        used_median=0.113,
        used_worst=1.27,
        multiple=8.0,
        floor=4.0,
    )
    assert "opt HFOPTLayerPolicy float16 240 8 11% ✗ 127%" in words(html.render_html(synthetic.run(budgets=(budget,))))


def words(source):
    return " ".join(" ".join(Page(source).text).split())


def test_what_policies_refused_by_name_is_told_by_case_with_the_examples_of_all_its_properties():
    refused = (("bert", "cache", {"windows": 2}), ("bert", "graph", {"windows": 1, "ALiBi": 1}), ("opt", "cache", {}))
    judged = [synthetic.verdict(case, name, refusals=names) for case, name, names in refused]
    page = html.render_html(synthetic.run(verdicts=tuple(judged)))
    assert "Refused by name in 1 case bert windows (3 examples); ALiBi (1 example)" in words(page)
    assert "Refused by name" not in html.render_html(synthetic.run())


def figures(run):
    source = html.render_html(run)
    return re.findall("<dt>(.*?)</dt>", source[source.index('<dl class="figures">') : source.index("<nav")])


def test_the_first_screen_has_the_figures_that_were_measured_and_no_others():
    judged, timed = ["verdicts held", "examples judged", "layers replaced"], ["speed-up, geometric mean"]
    lane = record.NullLane(comparisons=3, alarms=0, smallest_effect=None)
    seeing = replace(lane, smallest_effect=0.02)
    assert figures(synthetic.run(timings=())) == [*judged, "seed", "took"]
    assert figures(synthetic.run(verdicts=(), null_lane=lane)) == [*timed, "false alarms in A/A", "seed", "took"]
    assert "smallest detectable effect" in figures(synthetic.run(null_lane=seeing))


def test_the_line_under_the_title_names_torch_transformers_and_the_machine():
    under = html.render_html(synthetic.run()).split("</h1>")[1].split("</p>")[0]
    assert under.endswith("torch 2.13.0, transformers 5.23.0, on Example 9000, 2.4 GHz (machine 5f2c9a)")


def test_worst_errors_nearest_to_their_limit_come_first_and_the_others_are_folded():
    errors = {f"p{n}": 10.0**-n for n in range(11, 32)}
    judged = [synthetic.verdict(name=name, worst_error=error) for name, error in reversed(errors.items())]
    loose = synthetic.verdict(name="loose", worst_error=1e-3, tolerance=None)
    page = html.render_html(synthetic.run(verdicts=(loose, *judged)))
    section = page[page.index('<section aria-labelledby="errors">') : page.index('<section aria-labelledby="coverage">')]
    shown, folded = section.split("<details><summary>2 verdicts further from it</summary>")
    assert re.findall("<td>(p.*?|loose)</td>", shown) == list(errors)[:20]
    assert re.findall("<td>(p.*?|loose)</td>", folded) == [list(errors)[20], "loose"]
    assert '<th scope="col" class="num">time</th>' not in section


def test_what_disturbed_a_row_or_a_ceiling_is_shown_beside_it():
    ceilings = record.Ceilings(device="cpu", gemm_flops={}, copy_bytes=2e10, warnings=("the clock fell",))
    run = synthetic.run(timings=(synthetic.timing(warnings=("another process ran",)),), ceilings=(ceilings,))
    text = "".join(Page(html.render_html(run)).text)
    assert "⚠ another process ran" in text
    assert "⚠ the clock fell" in text
    assert any("; another process ran" in line for line in terminal.run_lines(run))


def test_a_matrix_cell_holds_symbol_word_examples_and_layers(full):
    text = re.sub(r"\s+", " ", "".join(full.text))
    assert "✗ failed240 examples431 layers" in text
    assert "∅ vacuous40 examples0 of 80 layers" in text


def test_the_matrix_has_properties_as_rows_and_cases_as_columns():
    page = html.render_html(synthetic.full_run())
    matrix = page[page.index('<table class="matrix">') : page.index("What each property claims")]
    assert [case for case in synthetic.CASES if f'<th scope="col">{case}<br>' in matrix] == list(synthetic.CASES)
    assert sorted(re.findall('<th scope="row">(.*?)</th>', matrix)) == sorted(synthetic.STATEMENTS)


def test_a_run_in_which_everything_fails_is_still_a_page_of_three_megabytes_at_most():
    failure = replace(synthetic.failure(), script="<" * 50_000, traceback="&" * 50_000)
    wrong = tuple(synthetic.verdict("bert", f"p{n}", outcome="failed", failure=failure) for n in range(130))
    assert len(html.render_html(synthetic.run(verdicts=wrong)).encode()) < 12_000_000
    script = "print('<attention>')\n" * 200
    wrong = tuple(
        synthetic.verdict("bert", f"p{n}", outcome="failed", failure=replace(failure, script=script, traceback=script))
        for n in range(130)
    )
    assert len(html.render_html(synthetic.run(verdicts=wrong)).encode()) < 3_000_000


def test_a_full_run_is_rendered_within_two_seconds_and_three_megabytes():
    run, previous = synthetic.full_run("b", faulty=True), synthetic.full_run("a", seed=2)
    html._environment.cache_clear()
    start = time.process_time()
    page = html.render_html(run, previous)
    assert time.process_time() - start < 2
    assert len(page.encode()) < 3_000_000


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_colour_stands_out_from_every_ground_it_is_put_on(scheme):
    style = html.render_html(synthetic.run())
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", re.findall(r":root \{(.*?)\}", style, re.S)[scheme]))
    grounds = {
        "ink": "paper card faint bad-bg warn-bg",
        "muted": "paper card bad-bg warn-bg",
        "link": "paper card bad-bg warn-bg",
        "good": "paper card",
        "bad": "paper card bad-bg",
        "warn": "paper card warn-bg",
        "fast": "paper card",
        "slow": "paper card",
    }
    for text, places in grounds.items():
        for ground in places.split():
            light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"  # WCAG 2.2, 1.4.3


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_real_browser_loads_the_page_without_a_word_on_its_console(tmp_path):
    verdict = synthetic.verdict(
        outcome="failed",
        reason="<script>console.error('escaped')</script>",
        failure=replace(synthetic.failure(), message="</p><script>console.error('escaped')</script>"),
    )
    run = replace(synthetic.full_run("b", faulty=True), command='"><script>console.error("escaped")</script>')
    page = tmp_path / "index.html"
    page.write_text(html.render_html(replace(run, verdicts=(*run.verdicts, verdict)), synthetic.full_run("a")), encoding="utf-8")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    quiet += "--disable-background-networking --disable-component-update --disable-sync"
    done = subprocess.run(
        [
            BROWSER,
            *quiet.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "did not hold" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
