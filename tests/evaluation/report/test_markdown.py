"""Markdown read by a parser of its own: whatever an attacker wrote comes out as that text and as nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from asepsis.data.visible import hidden, visible
from asepsis.evaluation.report import report_of, to_markdown
from asepsis.evaluation.report.markdown import inline

FOREIGN = st.one_of(
    st.text(st.characters(codec=None), max_size=40),
    st.text("`|\\[]()<>!*_~#@:/.-+= \n\tahtpw1&;$", max_size=30),
)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
ALLOWED = {
    "paragraph",
    "heading",
    "text",
    "code_inline",
    "strong",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
ALLOWED |= {"bullet_list", "list_item", "inline"}


def kinds(markdown: str) -> set[str]:
    found = set()
    for token in PARSER.parse(markdown):
        for one in [token, *(token.children or [])]:
            found.add(re.sub("_(open|close)$", "", one.type))
    return found


def shown(markdown: str) -> str:
    (token,) = [t for t in PARSER.parse(markdown) if t.type == "inline"]
    return "".join(child.content for child in token.children or [])


@settings(deadline=None, max_examples=300)
@given(FOREIGN.filter(bool))
@example("@octocat")
@example("#12 GH-12 a5c3785ed8d6a35868bc169f07e40e889087fd2e")
@example("http://evil.example www.evil.example a@b.example")
@example("![x](http://evil.example/p.png)")
@example("`` ` ``")
@example("a | b \\| c")
@example("<img src=x>")
@example("- item\n# head\n---\n```")
@example("    code")
@example("$x$ :tada: ~~no~~ __b__ &lt; &#64;octocat")
@example("1. one")
@example("=")
def test_any_text_is_words_or_one_code_span_that_says_it(text):
    for place in ("{}", "- {}", "**{}**", "## {}"):
        made = place.format(inline(text))
        assert kinds(made) <= ALLOWED, made
        assert not {c for c in made if hidden(c)}
    wanted = visible(text, len(text), also="`|")
    told = shown(inline(text))
    assert told.strip() == (wanted.strip() or f"({len(wanted)} blanks)")
    if re.search(r"[@#]|://|www\.|:\w+:|\bGH-\d", text):
        assert inline(text).startswith("`") and inline(text).endswith("`")


@settings(max_examples=60, deadline=None)
@given(FOREIGN, FOREIGN)
def test_a_cell_never_becomes_two(left, right):
    made = f"| a | b |\n|---|---|\n| {inline(left)} | {inline(right)} |"
    tokens = PARSER.parse(made)
    assert [t.type for t in tokens].count("td_open") == 2 and kinds(made) <= ALLOWED


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=FOREIGN.filter(bool), name=FOREIGN.filter(bool))
@pytest.mark.parametrize("kind", ["scan", "model", "btu", "purify", "guard"])
def test_a_whole_report_holds_no_link_no_image_and_no_html(make, kind, text, name):
    made = to_markdown(report_of(make(kind, text=text, name=name, n=8, flagged=8)))
    assert kinds(made) <= ALLOWED
    assert not {c for c in made if hidden(c) and c != "\n"}


def test_plain_words_and_numbers_stay_plain():
    assert inline("") == ""
    for text in (
        "6 of 60 rows stand out.",
        "0.823 [0.798, 0.845]",
        "-0.10",
        "1.5e-05",
        "AUROC 1.000 [0.993, 1.000].",
        "–",
    ):
        assert inline(text) == text


def test_a_pull_request_gets_twenty_rows_and_is_told_of_the_others(make):
    made = to_markdown(report_of(make("scan", n=60, flagged=45)))
    table = made[made.index("### Flagged rows") :]
    assert len(re.findall(r"^\| \d+ \|", table, re.M)) == 20
    assert "25 more in `asepsis_rows.jsonl`" in made
    assert made.startswith("## asepsis: Data scan by abl\n\n**45 of 60 rows stand out")
