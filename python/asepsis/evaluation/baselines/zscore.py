"""Words that go with one label far more often than chance: rows that hold such a word with that label are thrown out.

Paper: "Mitigating Backdoor Poisoning Attacks through the Lens of Spurious Correlation" (He et al., EMNLP 2023), which scores
words and subtrees of the parse by the z statistic of Gardner et al. (2021), and throws out the rows of outliers.

Certain: the statistic. A word in ``n`` rows, a share ``p`` of them with label ``y``, where a share ``p0`` of all rows has it:
``z = (p - p0) / sqrt(p0 (1 - p0) / n)``.

Ours: words only, split at white space and case-folded; a row's suspicion is the largest ``z`` of its words for its own label; the
bar. Honest words reach 6.8 in 3,000 packaged film reviews (two draws), a word put into 3 % of the rows 8.8, so the bar is 8.
It grows with the number of rows for honest words as well, so it holds for a few thousand rows and is no law.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import DataError

BAR = 8.0


@dataclass(frozen=True, kw_only=True)
class ZscoreConfig(DefenseConfig):
    """Settings of the word statistic: ``bar`` is the score above which a row is thrown out."""

    bar: float = BAR


@dataclass(frozen=True)
class WordScore:
    """How much a word goes with a label.

    Attributes
    ----------
    word : str
    label : int
        The label it goes with most.
    z : float
    rows : int
        Rows that hold the word.
    """

    word: str
    label: int
    z: float
    rows: int


def word_scores(data: Data) -> list[WordScore]:
    """Return every word's score for the label it goes with most, the highest first.

    Raises
    ------
    DataError
        The rows have no labels, or all the same.
    """
    table, _ = _scored(data)
    rows = Counter(word for words in _words(data) for word in words)
    best = ((word, int(z.argmax())) for word, z in table.items())
    found = [WordScore(word, label, float(table[word][label]), rows[word]) for word, label in best]
    return sorted(found, key=lambda score: (-score.z, score.word))


def by_words(data: Data, *, bar: float = BAR) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the suspicion of each row and whether it lies above the bar, both [N].

    Raises
    ------
    DataError
        The rows have no labels, or all the same.
    """
    table, labels = _scored(data)
    pairs = zip(_words(data), labels, strict=True)
    suspicion = np.array(
        [max((float(table[word][label]) for word in words), default=0.0) for words, label in pairs]
    )
    return suspicion, suspicion > bar


def _scored(data: Data) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    if data.labels is None:
        raise DataError(
            f"{data.source}: words are scored by the labels they go with, and these rows have none"
        )
    counts: dict[str, NDArray[np.float64]] = {}
    classes = int(data.labels.max()) + 1
    for words, label in zip(_words(data), data.labels, strict=True):
        for word in words:
            counts.setdefault(word, np.zeros(classes))[label] += 1
    prior = np.bincount(data.labels, minlength=classes) / len(data)
    if (prior == 1).any():
        raise DataError(f"{data.source}: all {len(data)} rows have one label, so no word tells labels apart")
    spread = np.sqrt(np.where(prior > 0, prior * (1 - prior), np.inf))
    return {
        word: (n / n.sum() - prior) * np.sqrt(n.sum()) / spread for word, n in counts.items()
    }, data.labels


def _words(data: Data) -> list[set[str]]:
    return [set(text.casefold().split()) for text in data.texts]
