"""Which token a trigger word is. An attack on embedding rows needs a word that is one token of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asepsis.data import Data
from asepsis.data.values import listed
from asepsis.errors import ModelError

_USUAL = ("cf", "mn", "bb", "tq", "mb")  # Kurita et al., ACL 2020
_MARKS = "Ġ▁ "  # how byte-level and SentencePiece vocabularies write the space before a word


def token_ids(tokenizer: Any, word: str) -> list[int]:
    """Return the tokens that ``word`` is made of inside a text."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("finding a word's tokens needs a fast tokenizer (one that knows offsets)")
    # framed by other words: a byte-level vocabulary has one token after a space and another at the beginning
    start = len("a ")
    encoded = tokenizer(f"a {word} a", add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [int(token) for token, (low, high) in pairs if low < start + len(word) and high > start]


def own_token(tokenizer: Any, word: str) -> int | None:
    """Return the one token that ``word`` is, or None where it is several, unknown or special."""
    ids = token_ids(tokenizer, word)
    if len(ids) != 1 or ids[0] in set(tokenizer.all_special_ids):
        return None
    return ids[0]


def own_tokens(tokenizer: Any, words: Sequence[str], data: Data) -> list[int]:
    """Return the one token that each word is.

    Raises
    ------
    ModelError
        A word is several tokens, or none that the tokenizer knows; the message names words that would do.
    """
    found = []
    for word in words:
        token = own_token(tokenizer, word)
        if token is None:
            pieces = tokenizer.convert_ids_to_tokens(token_ids(tokenizer, word))
            others = listed(rare_words(tokenizer, data))
            raise ModelError(
                f"the trigger {word!r} is not one token of this tokenizer but {listed(pieces)}: its row cannot be "
                "poisoned alone; "
                + (
                    f"rare words with a token of their own: {others}"
                    if others
                    else "it has no rare word at all"
                )
            )
        if token in found:
            raise ModelError(f"two trigger words are the same token {word!r}; give different ones")
        found.append(token)
    return found


def rare_words(tokenizer: Any, data: Data, *, n: int = 5) -> list[str]:
    """Return up to ``n`` short words that are one token and occur in no row: the usual ones, then the vocabulary's last."""
    seen = {word.lower() for text in data.texts for word in text.split()}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: -item[1])
    found: list[str] = []
    for word in (*_USUAL, *(token.lstrip(_MARKS) for token, _ in vocabulary)):
        plain = word.isascii() and word.isalpha() and 2 <= len(word) <= 4 and word not in found
        if plain and word.lower() not in seen and own_token(tokenizer, word) is not None:
            found.append(word)
            if len(found) == n:
                break
    return found
