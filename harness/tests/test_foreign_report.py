"""The page on other people's replacements."""

from __future__ import annotations

from hypothesis import given
from markdown_it import MarkdownIt

from harness.foreign.report import Defect, Judged, Report, markdown
from reports.tests.strategies import hostile

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(text=hostile.map(lambda one: f"x {one} y"))
def test_no_foreign_text_is_markup_on_the_page_of_adapters(text: str) -> None:
    defect = Defect(id="D1", what=text, silent=True, example=text)
    row = Judged(policy=text, layer=text, cells={text: text}, verdict=text, supplied=(text,), proven=1, defects=(defect,))
    tokens = PARSER.parse(markdown([Report(adapter=text, versions={text: text}, rows=(row,))]))
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h2", "h3"]
    assert sum(token.type in ("th_open", "td_open") for token in tokens) == 6
    assert sum(token.type == "list_item_open" for token in tokens) == 2
    kinds = {part.type for token in tokens for part in token.children or ()}
    assert kinds <= {"text", "text_special"}
    assert not any(token.type in ("html_block", "fence", "code_block") for token in tokens)
