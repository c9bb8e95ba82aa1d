"""What hides, reorders or commands is shown by its code, and nothing else is changed."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asepsis.data.visible import hidden, visible


def test_long_text_is_cut_and_says_so():
    assert visible("a" * 400) == "a" * 300 + "…"
    assert visible("a" * 300) == "a" * 300
    assert visible("a\tb\n") == "a<U+0009>b<U+000A>"
    assert visible("ordinary text, 日本 🙂") == "ordinary text, 日本 🙂"


def test_line_feeds_stay_where_lines_are_wanted_and_carriage_returns_do_not():
    assert visible("a\nb\rc", lines=True) == "a\nb<U+000D>c"


def test_characters_that_act_where_the_text_goes_are_shown_too():
    assert visible("a|`b`", also="`|") == "a<U+007C><U+0060>b<U+0060>"


HIDDEN = [
    0xFE0F,
    0xE0101,
    0x3164,
    0x2800,
    0xAD,
    0xE0041,
    0xA0,
    0x202F,
    0x2028,
    0x202E,
    0x200B,
    0x1B,
    0x07,
    0x9B,
]
HIDDEN += [0xFEFF, 0xFFFE, 0xD800, 0xE000, 0x2066, 0x180E]


@pytest.mark.parametrize("code", HIDDEN, ids=hex)
def test_characters_without_a_glyph_of_their_own_are_shown_by_code(code):
    assert visible(f"a{chr(code)}b") == f"a<U+{code:04X}>b"


@given(st.text(st.characters(codec=None)))
def test_what_is_visible_can_be_written_printed_and_read_again(text):
    shown = visible(text, len(text))
    shown.encode("utf-8")
    assert all(c.isprintable() for c in shown)
    assert visible(shown, len(shown)) == shown
    assert "".join(c for c in text if not hidden(c)) == "".join(
        c for c in text if c in shown and unicodedata.category(c)[0] != "C" and not hidden(c)
    )
