from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from asepsis.core.weights import Frequencies, Vocabulary, find_checkpoint
from asepsis.errors import DataError

TOKENS = ["[UNK]", "the", "cf", "movie", "7"]


@pytest.fixture
def vocabulary(model_folder):
    return Vocabulary.load(model_folder("m", {"x": np.ones(1)}, tokens=TOKENS, special=["[UNK]"]))


def test_counts_are_scaled_to_ten_million(vocabulary):
    found = Frequencies.of(vocabulary, counts={"the": 3, "movie": 1})
    assert found.per_ten_million.tolist() == [0, 7.5e6, 0, 2.5e6, 0]


def test_counts_go_by_token_before_id(vocabulary, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"7": 1, "2": 1}))
    found = Frequencies.of(vocabulary, counts=tmp_path / "c.json").per_ten_million
    assert found.tolist() == [0, 0, 5e6, 0, 5e6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no counts"),
        ("[1]", "JSON object"),
        ('{"the": -1}', "at least 0"),
        ('{"the": "x"}', "at least 0"),
        ('{"the": NaN}', "at least 0"),
        ('{"the": 1, "the": 2}', "twice"),
        ('{"nothing": 3}', "none of the 1 keys"),
        ("{}", "not a single token"),
    ],
)
def test_counts_that_cannot_be_used_are_refused(vocabulary, tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Frequencies.of(vocabulary, counts=tmp_path / "c.json")


def test_a_corpus_is_counted_with_the_tokenizer(vocabulary):
    found = Frequencies.of(vocabulary, corpus=["the movie the", "the"])
    assert found.per_ten_million.tolist() == [0, 7.5e6, 0, 2.5e6, 0]
    assert "2 texts" in found.source
    with pytest.raises(DataError, match="not a single token"):
        Frequencies.of(vocabulary, corpus=[])


def test_without_wordfreq_nothing_is_known_and_said(vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    found = Frequencies.of(vocabulary)
    assert found.per_ten_million is None and "pip install" in found.source


def test_an_unknown_language_is_refused(vocabulary):
    pytest.importorskip("wordfreq")
    with pytest.raises(DataError, match="no language 'xx'"):
        Frequencies.of(vocabulary, language="xx")


def test_counts_are_carried_over_to_another_vocabulary():
    known = Frequencies(np.array([1.0, 2.0, 3.0]), "here")
    moved = known.mapped(np.array([[2, 0], [1, 3]]), 4)
    assert moved.per_ten_million.tolist() == [3, 0, 0, 2]


@pytest.mark.demo
def test_words_and_pieces_of_a_real_vocabulary_have_plausible_frequencies():
    pytest.importorskip("wordfreq")
    with find_checkpoint("demo:encoder") as folder:
        vocabulary = Vocabulary.load(folder)
    f = Frequencies.of(vocabulary).per_ten_million
    at = vocabulary.ids
    order = [f[at[token]] for token in ("the", "movie", "cf", "tq")]
    assert order == sorted(order, reverse=True)
    assert f[at["##ing"]] > 1000  # a piece is counted where it stands in words
    assert f[at["."]] > f[at["("]] > f[at["cf"]]
