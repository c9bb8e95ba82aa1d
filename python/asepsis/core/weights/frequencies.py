"""How often each token is expected in clean text. Never counted in text that may be poisoned: it inflates its trigger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asepsis.core.documents import read_json
from asepsis.core.weights.vocabulary import Ids, Vocabulary
from asepsis.errors import DataError, MissingDependency, ModelError

Floats = npt.NDArray[np.float64]

_PER = 1e7
# how words stand in text: shares of a space before or not, a capital or not; sentences begin without a space
_FORMS = ((" ", False, 0.87), (" ", True, 0.08), ("", True, 0.03), ("", False, 0.02))
# word lists count no punctuation; roughly, of the tokens of English text. Anything else of ASCII signs is rarer
_SIGNS = {".": 0.05, ",": 0.05} | dict.fromkeys("'\"-?!:;()", 0.003) | dict.fromkeys("/&%$#*@+=[]", 1e-4)
_OTHER_SIGNS = 1e-6
_AT_ONCE = 20_000


@dataclass(frozen=True)
class Frequencies:
    """Expected count of each token in ten million.

    Attributes
    ----------
    per_ten_million
        ``[V]`` float64 by token id; None where nothing is known, which :attr:`source` says.
    source
        Where the counts come from.
    """

    per_ten_million: Floats | None
    source: str

    @classmethod
    def of(
        cls,
        vocabulary: Vocabulary,
        *,
        counts: str | Path | Mapping[Any, float] | None = None,
        corpus: Iterable[str] | None = None,
        language: str = "en",
    ) -> Frequencies:
        """Take the first that is given: counts, a corpus, the word list of the package ``wordfreq``, nothing.

        Parameters
        ----------
        vocabulary
            Of the model that is trusted: its tokenizer cuts the words. :meth:`mapped` takes the result to another.
        counts
            A JSON object ``{token or id: count}``, or such a mapping. Token strings are looked up first.
        corpus
            Texts that the user trusts.
        language
            Of the word list, as wordfreq names it.

        Raises
        ------
        DataError
            Counts or corpus cannot be used, or wordfreq has no such language.
        """
        if counts is not None:
            return cls(_scaled(_given(vocabulary, counts), "counts"), "counts given")
        if corpus is not None:
            texts = list(corpus)
            found = _encoded(vocabulary, texts, np.ones(len(texts)))
            return cls(_scaled(found, "corpus"), f"clean corpus of {len(texts):,} texts")
        try:
            words = _words(language)
        except MissingDependency as missing:
            return cls(None, f"none: {missing}")
        forms, mass = _forms(vocabulary, words)
        found = _encoded(vocabulary, forms, mass, special=False)
        found = _scaled(found, "word list")
        for at, token in enumerate(vocabulary.tokens):
            surface = vocabulary.surface(at) if token is not None else ""
            if surface and surface.isascii() and not any(c.isalnum() for c in surface):
                found[at] = max(found[at], _PER * _SIGNS.get(surface, _OTHER_SIGNS))
        return cls(found, f"wordfreq, {language}")

    def mapped(self, pairs: Ids, rows: int) -> Frequencies:
        """Return them by the ids of another vocabulary: ``pairs`` as of ``row_map``, 0 where it has no partner."""
        if self.per_ten_million is None:
            return self
        there = np.zeros(rows)
        known = pairs[pairs[:, 0] < len(self.per_ten_million)]
        there[known[:, 1]] = self.per_ten_million[known[:, 0]]
        return replace(self, per_ten_million=there)


def _given(vocabulary: Vocabulary, counts: str | Path | Mapping[Any, float]) -> Floats:
    if not isinstance(counts, Mapping):
        where = str(counts)
        try:
            counts = read_json(Path(counts))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{where}: no counts can be read: {error}; wanted a JSON object of token or id to count"
            ) from error
        if not isinstance(counts, dict):
            raise DataError(
                f"{where}: wanted a JSON object of token or id to count, got {type(counts).__name__}"
            )
    found = np.zeros(len(vocabulary))
    unknown = 0
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise DataError(f"counts: {key!r} must have a count of at least 0, got {value!r}")
        at = vocabulary.ids.get(key) if isinstance(key, str) else key
        if at is None and isinstance(key, str) and key.isdecimal():
            at = int(key)
        if not isinstance(at, int) or not 0 <= at < len(found):
            unknown += 1
            continue
        found[at] += value
    if counts and unknown == len(counts):
        raise DataError(f"counts: none of the {unknown} keys is a token or an id of {vocabulary.folder}")
    return found


def _words(language: str) -> dict[str, float]:
    try:
        import wordfreq
    except ImportError as error:
        raise MissingDependency("wordfreq is not installed: pip install 'asepsis[frequencies]'") from error
    try:
        found: dict[str, float] = wordfreq.get_frequency_dict(language, wordlist="best")
    except LookupError as error:
        known = ", ".join(sorted(wordfreq.available_languages()))
        raise DataError(f"wordfreq has no language {language!r}; it has {known}") from error
    return found


def _forms(vocabulary: Vocabulary, words: dict[str, float]) -> tuple[list[str], Floats]:
    """Words as they stand in text, each form that the tokenizer tells from the others with its share."""
    mass = np.fromiter(words.values(), np.float64, len(words))
    told: dict[tuple[int, ...], list[tuple[str, bool]]] = {}
    shares: Counter[tuple[int, ...]] = Counter()
    for space, capital, share in _FORMS:
        probe = tuple(_cut(vocabulary, [space + ("The" if capital else "the")], special=False)[0])
        told.setdefault(probe, []).append((space, capital))
        shares[probe] += share  # type: ignore[assignment]
    forms: list[str] = []
    weights = []
    for probe, ((space, capital), *_) in told.items():
        forms += [space + (word.capitalize() if capital else word) for word in words]
        weights.append(mass * shares[probe])
    return forms, np.concatenate(weights)


def _encoded(vocabulary: Vocabulary, texts: list[str], mass: Floats, *, special: bool = True) -> Floats:
    """Return ``[V]``: how much of ``mass`` falls on each token when the vocabulary's tokenizer cuts the texts."""
    found = np.zeros(len(vocabulary))
    for start in range(0, len(texts), _AT_ONCE):
        pieces = _cut(vocabulary, texts[start : start + _AT_ONCE], special=special)
        lengths = [len(ids) for ids in pieces]
        at = np.fromiter((i for ids in pieces for i in ids), np.int64, sum(lengths))
        weight = np.repeat(mass[start : start + _AT_ONCE], lengths)
        inside = at < len(found)
        found += np.bincount(at[inside], weight[inside], minlength=len(found))
    return found


def _cut(vocabulary: Vocabulary, texts: list[str], *, special: bool) -> list[list[int]]:
    fast = vocabulary.tokenizer
    if fast is None:
        return _slow(vocabulary, texts, special=special)
    return [encoding.ids for encoding in fast.encode_batch_fast(texts, add_special_tokens=special)]


def _slow(vocabulary: Vocabulary, texts: list[str], *, special: bool) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(vocabulary.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a missing or strange file leads to
        raise ModelError(f"{vocabulary.folder} has no tokenizer that can count words: {error}") from error
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=special, truncation=False)["input_ids"]
    return ids


def _scaled(found: Floats, what: str) -> Floats:
    total = found.sum()
    if not total > 0:
        raise DataError(
            f"{what}: not a single token was counted; leave it out, or give text of this language"
        )
    scaled: Floats = found * (_PER / total)
    return scaled
