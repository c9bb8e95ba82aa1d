"""Text in, text out: leaving words out, replacing them, telling a template from what stands in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asepsis.inference.detectors._words import (
    Frame,
    generator,
    halves,
    leave_one_out,
    telling_words,
    with_replaced,
    words_of,
)

TEXT = st.text(alphabet="ab \n\t é漢🙂\u00a0\u200d", max_size=30)


def test_every_word_is_left_out_once_the_last_one_too():
    assert leave_one_out("a b c") == ["b c", "a c", "a b"]


def test_white_space_and_line_breaks_elsewhere_stay():
    assert leave_one_out("Q:\n a  b\n") == ["a  b\n", "Q:  b\n", "Q:\n a\n"]


@pytest.mark.parametrize(("text", "expected"), [("", []), ("  \n", []), ("a", [""]), (" a ", [" "])])
def test_texts_of_fewer_than_two_words_leave_nothing(text, expected):
    assert leave_one_out(text) == expected


@given(TEXT)
def test_leaving_a_word_out_leaves_exactly_the_others(text):
    words = words_of(text)
    assert [words_of(t) for t in leave_one_out(text)] == [
        words[:at] + words[at + 1 :] for at in range(len(words))
    ]


@given(TEXT)
def test_halves_lose_no_word_and_hold_half_of_them(text):
    words = words_of(text)
    if len(words) < 2:
        with pytest.raises(ValueError, match="has no halves"):
            halves(text)
        return
    first, second = halves(text)
    assert words_of(first) + words_of(second) == words
    assert len(words_of(first)) == len(words) // 2


def test_a_template_is_what_all_texts_begin_and_end_with():
    frame = Frame.of(["Q: one two A:", "Q: three A:"])
    assert frame == Frame(before=("Q:",), after=("A:",))
    assert frame.free(["Q:", "x", "y", "A:"]) == range(1, 3)


def test_a_template_leaves_one_word_of_every_text_free():
    assert Frame.of(["a", "a a"]) == Frame()
    frame = Frame.of(["a a a", "a a a a"])
    assert len(frame.before) + len(frame.after) == 2
    assert all(len(frame.free(["a"] * n)) >= 1 for n in range(1, 6))


@pytest.mark.parametrize("texts", [["a b c"], ["a b c", "a b c"], ["", "a b"], [""]])
def test_one_text_says_nothing_about_a_template(texts):
    assert Frame.of(texts) == Frame()


def test_a_text_outside_the_template_is_free_everywhere():
    frame = Frame(before=("Q:",), after=("A:",))
    assert frame.free(["x", "y", "z"]) == range(3)
    assert frame.free(["Q:", "x"]) == range(2)
    assert frame.free(["Q:", "A:"]) == range(2)  # nothing would be left of it
    assert frame.free([]) == range(0)


def test_words_of_few_texts_tell_more_than_words_of_all():
    ranked = telling_words(["the film dull dull", "the film bright", "the the the"], frame=Frame(), most=2)
    assert ranked == [["dull", "film"], ["bright", "film"], ["the"]]


def test_a_template_is_not_telling():
    ranked = telling_words(["Q: one A:", "Q: two A:"], frame=Frame(before=("Q:",), after=("A:",)), most=9)
    assert ranked == [["one"], ["two"]]


@given(TEXT, st.integers(0, 5), st.floats(0.01, 0.99))
def test_the_share_of_words_is_replaced_and_white_space_is_not(text, seed, ratio):
    rng = generator(text, seed)
    new = with_replaced(text, ["DONOR"], ratio, rng, frame=Frame())
    words = words_of(text)
    wanted = 0 if len(words) < 2 else min(max(1, round(ratio * len(words))), len(words) - 1)
    assert words_of(new).count("DONOR") == wanted
    assert len(words_of(new)) == len(words)
    kept = [a for a, b in zip(words, words_of(new), strict=True) if a == b]
    assert len(kept) == len(words) - wanted


def test_a_short_donor_is_gone_through_again_and_an_empty_one_changes_nothing():
    rng = np.random.default_rng(0)
    new = with_replaced("a b c d", ["X", "Y"], 0.75, rng, frame=Frame())
    assert sorted(w for w in new.split() if w.isupper()) == ["X", "X", "Y"]
    assert with_replaced("a b", [], 0.5, rng, frame=Frame()) == "a b"


def test_a_template_is_not_replaced():
    frame = Frame(before=("Q:",), after=("A:",))
    for seed in range(20):
        new = with_replaced("Q:\nx y z\nA:\n", ["X"], 0.9, np.random.default_rng(seed), frame=frame)
        assert new.startswith("Q:\n") and new.endswith("\nA:\n") and new.split().count("X") == 2


def test_chance_depends_on_the_text_and_the_seed():
    draw = lambda text, seed: generator(text, seed).integers(1 << 30)  # noqa: E731
    assert draw("a", 0) == draw("a", 0)
    assert len({draw("a", 0), draw("a", 1), draw("b", 0)}) == 3
    assert draw("\ud800", 0) == draw("\ud800", 0)  # half of a surrogate pair
