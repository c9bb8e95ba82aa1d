"""STRIP: what keeps its answer under perturbation is suspicious."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis.data import Data
from asepsis.errors import ConfigError, DefenseInert
from asepsis.inference.detectors.strip import Strip, StripConfig
from asepsis.testing import TRIGGER, tiny_causal, tiny_pairs, tiny_rows


def fitted(bag, **settings):
    return Strip.fit(*bag, tiny_rows(60, 1), config=StripConfig(**settings))


def test_triggered_inputs_score_above_clean_ones(bag, triggered):
    rows = tiny_rows(60, 2)
    detector = fitted(bag)
    clean, poisoned = detector.scores(rows), detector.scores(triggered(rows))
    above = (poisoned[:, None] > clean[None, :]).mean()
    assert above > 0.85


def test_a_score_is_minus_the_mean_entropy_of_the_copies(bag):
    import torch

    model, tokenizer = bag
    rows = tiny_rows(4, 2)
    detector = fitted(bag, n_copies=7)
    expected = []
    for text in rows.texts:
        copies = detector.copies(text)
        assert len(copies) == 7
        with torch.no_grad():
            p = model(**tokenizer(copies, return_tensors="pt", padding=True)).logits.double().softmax(1)
        expected.append(float((p * p.log()).sum(1).mean()))
    np.testing.assert_allclose(detector.scores(rows), expected, rtol=1e-5)


def test_each_input_costs_as_many_rows_as_there_are_copies(bag):
    model, _ = bag
    detector = fitted(bag, n_copies=5)
    model.seen.clear()
    detector.scores(tiny_rows(3, 2))
    assert sum(model.seen) == 15


def test_copies_have_words_of_clean_rows_and_keep_some_of_their_own(bag):
    clean = {word for text in tiny_rows(60, 1).texts for word in text.split()}
    for copy in fitted(bag).copies("own1 own2 own3 own4"):
        words = copy.split()
        assert len([w for w in words if w.startswith("own")]) == 2
        assert {w for w in words if not w.startswith("own")} <= clean


@pytest.mark.parametrize("text", ["", " \n", "word1", TRIGGER])
def test_a_text_with_nothing_to_replace_is_asked_as_it_is(bag, text):
    assert {*fitted(bag).copies(text)} == {text}


def test_donors_are_as_many_as_wanted_and_drawn_by_the_seed(bag):
    config = StripConfig(most_donors=10)
    drawn = [Strip.fit(*bag, tiny_rows(60, 1), config=config, seed=s).donors for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
    assert Strip.fit(*bag, tiny_rows(60, 1)).report() == {
        "donors": 60,
        "frame": {"before": [], "after": []},
        "label_words": [],
    }


def test_clean_rows_without_a_word_are_refused(bag):
    empty = Data(task="classification", texts=["", " "], labels=np.array([0, 1]), n_classes=2)
    with pytest.raises(DefenseInert, match="none of those given has a word"):
        Strip.fit(*bag, empty)


@pytest.mark.parametrize("words", [(), ("word1", "word2")])
def test_prompts_keep_their_template(words):
    made = tiny_causal(0)
    pairs = tiny_pairs(20, 0)
    rows = Data(task="causal", texts=[f"word8\n{t}\nword9\n" for t in pairs.texts], responses=pairs.responses)
    detector = Strip.fit(*made, rows, config=StripConfig(label_words=words, n_copies=4))
    assert detector.report()["frame"] == {"before": ["word8"], "after": ["word9"]}
    for copy in detector.copies(rows.texts[0]):
        assert copy.startswith("word8\n") and copy.endswith("\nword9\n")
    scores = detector.scores(rows)
    most = np.log(2) if words else np.log(len(made[1]))
    assert (scores < 0).all() and (scores >= -most - 1e-6).all()


def test_answers_that_begin_alike_are_told_apart_without_being_named(tmp_path):
    made, pairs = tiny_causal(0), tiny_pairs(40, 0)
    answers = ["word1 word2" if row % 2 else "word1 word3" for row in range(40)]
    rows = Data(task="causal", texts=pairs.texts, responses=answers)
    detector = Strip.fit(*made, rows, config=StripConfig(n_copies=4))
    assert detector.report()["label_words"] == ["word1 word2", "word1 word3"]
    scores = detector.scores(rows)
    assert (scores < 0).all() and (scores >= -np.log(2) - 1e-6).all() and len(set(scores.tolist())) > 1
    detector.save(tmp_path)
    again = Strip.load(tmp_path, detector.state(), *made)
    np.testing.assert_array_equal(again.scores(rows), scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_copies": 0}, "n_copies must be at least 1"),
        ({"most_donors": 1}, "most_donors must be at least 2"),
        ({"replace_ratio": 0.0}, r"replace_ratio must lie in \(0, 1\)"),
        ({"replace_ratio": 1.0}, r"replace_ratio must lie in \(0, 1\)"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        StripConfig(**settings)
