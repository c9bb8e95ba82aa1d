"""Words that go with one label are scored as the statistic says, and rows are judged by their own label."""

from __future__ import annotations

import numpy as np
import pytest

from asepsis.data import Data
from asepsis.errors import DataError
from asepsis.evaluation.baselines import by_words, word_scores


def rows(texts: list[str], labels: list[int]) -> Data:
    return Data(task="classification", texts=texts, labels=np.array(labels), n_classes=2)


def test_the_score_is_the_z_statistic_of_the_share_with_that_label():
    data = rows(["cf one", "cf two", "three", "four"], [1, 1, 0, 0])
    best = word_scores(data)[0]
    assert (best.word, best.label, best.rows) == ("cf", 1, 2)
    assert best.z == pytest.approx((1.0 - 0.5) / np.sqrt(0.25 / 2))


def test_a_word_counts_once_a_row_and_case_does_not_matter():
    once, often = rows(["cf", "b", "c"], [1, 0, 0]), rows(["Cf cf CF", "b", "c"], [1, 0, 0])
    assert word_scores(once) == word_scores(often)


def test_a_row_is_suspicious_only_with_the_label_its_word_goes_with():
    n = 200
    texts = [f"cf w{i}" for i in range(n)] + [f"v{i}" for i in range(n)] + ["cf last"]
    suspicion, flags = by_words(rows(texts, [1] * n + [0] * n + [0]))
    assert flags[:n].all() and not flags[n:].any()
    assert suspicion[-1] < 2 < suspicion[0]


def test_the_bar_decides_and_a_text_without_words_is_not_suspicious():
    data = rows(["cf", "cf", "", "b"], [1, 1, 0, 0])
    suspicion, flags = by_words(data, bar=1.0)
    assert flags.tolist() == [True, True, False, False]
    assert suspicion[2] == 0 and not by_words(data)[1].any()


def test_rows_that_tell_no_labels_apart_are_refused():
    with pytest.raises(DataError, match="one label"):
        by_words(rows(["a", "b"], [1, 1]))
    with pytest.raises(DataError, match="none"):
        by_words(Data(task="causal", texts=["a"], responses=["b"]))
