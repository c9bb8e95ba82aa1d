"""The page says what the tests do: its numbers are counted from the registries, and every registry is tried."""

from __future__ import annotations

from pathlib import Path

from hostile.table import BEGIN, CORPORA, END, LINES, hostile_inputs, table

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_the_table_of_the_page_is_the_one_that_is_counted():
    text = PAGE.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) : text.index(END) + len(END)] == table()


def test_no_case_is_counted_twice():
    names = [case.name for corpus in CORPORA for case in corpus]
    assert len(names) == len(set(names))
    assert hostile_inputs() == len(names) >= 150


def test_every_corpus_has_its_line():
    lines = {line.what: line.cases for line in LINES}
    for corpus in CORPORA:
        assert len(corpus) in lines.values(), corpus.kind


def test_every_case_knocks_somewhere():
    from test_weights import ADAPTER_DOORS, DOORS

    for corpus in CORPORA:
        assert not [case.name for case in corpus if case.passes >= {*DOORS, *ADAPTER_DOORS}]
