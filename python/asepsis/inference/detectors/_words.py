"""Words of a text: where they stand, the text without one of them, the text with some of them replaced.

A word is a run of characters other than white space. White space stays as it is, so that the line breaks of a prompt
survive.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"\S+")


def words_of(text: str) -> list[str]:
    """Return the words in order."""
    return _WORD.findall(text)


def leave_one_out(text: str) -> list[str]:
    """Return one text per word, the last word included: without that word and the white space before it.

    Without the first word, the white space after it goes.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    ends = [0, *(end for _, end in spans)]
    without = [text[: ends[at]] + text[end:] for at, (_, end) in enumerate(spans)]
    if len(spans) > 1:
        without[0] = text[: spans[0][0]] + text[spans[1][0] :]
    return without


def halves(text: str) -> tuple[str, str]:
    """Return the first and the second half of the words, the white space between them with neither."""
    spans = [match.span() for match in _WORD.finditer(text)]
    middle = len(spans) // 2
    if middle == 0:
        raise ValueError(f"a text of {len(spans)} words has no halves")
    return text[: spans[middle - 1][1]], text[spans[middle][0] :]


def generator(text: str, seed: int) -> np.random.Generator:
    """Return a generator that depends on the text and the seed, and not on where the text stands in a batch."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Words that every text begins and ends with: a prompt template, which is not the input's own.

    Attributes
    ----------
    before, after : tuple of str
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: Sequence[str]) -> Frame:
        """Find the words common to the beginnings and to the ends; one word of the shortest text stays free."""
        rows = [words_of(text) for text in {*texts}]
        rows = [row for row in rows if row]
        if len(rows) < 2:
            return cls()
        room = min(map(len, rows)) - 1
        before = _common([row[:room] for row in rows])
        after = _common([row[::-1][: room - len(before)] for row in rows])
        return cls(before=tuple(before), after=tuple(reversed(after)))

    def free(self, words: Sequence[str]) -> range:
        """Return the positions of the words inside the frame; all of them where the text does not stand in it."""
        first, last = len(self.before), len(words) - len(self.after)
        if first >= last or (tuple(words[:first]), tuple(words[last:])) != (self.before, self.after):
            return range(len(words))
        return range(first, last)


def _common(rows: list[list[str]]) -> list[str]:
    shared = []
    for column in zip(*rows, strict=False):
        if len({*column}) > 1:
            break
        shared.append(column[0])
    return shared


def telling_words(texts: Sequence[str], *, frame: Frame, most: int) -> list[list[str]]:
    """Return each text's own words by descending tf-idf, at most ``most`` of them, ties as they stand in the text.

    The weight is ``count in the text * (ln((1 + N) / (1 + texts that hold the word)) + 1)``.
    """
    rows = []
    for text in texts:
        words = words_of(text)
        rows.append([words[at] for at in frame.free(words)])
    holding = Counter(word for row in rows for word in {*row})
    ranked = []
    for row in rows:
        count = Counter(row)
        weight = {w: n * (math.log((1 + len(rows)) / (1 + holding[w])) + 1) for w, n in count.items()}
        ranked.append(sorted(weight, key=lambda word: -weight[word])[:most])
    return ranked


def with_replaced(
    text: str, donor: Sequence[str], ratio: float, rng: np.random.Generator, *, frame: Frame
) -> str:
    """Return the text with a share of its words, drawn by ``rng``, replaced by a donor's words from the front.

    At least one word is replaced and at least one stays, so a text of fewer than two words comes back as it is. A donor
    of too few words is gone through again.
    """
    words = words_of(text)
    free = frame.free(words)
    if len(free) < 2 or not donor:
        return text
    n = min(max(1, round(ratio * len(free))), len(free) - 1)
    chosen = rng.choice(np.asarray(free), size=n, replace=False).tolist()
    new = dict(zip(chosen, (donor[i % len(donor)] for i in range(n)), strict=True))
    pieces, end = [], 0
    for at, match in enumerate(_WORD.finditer(text)):
        pieces += [text[end : match.start()], new.get(at, match.group())]
        end = match.end()
    return "".join([*pieces, text[end:]])
