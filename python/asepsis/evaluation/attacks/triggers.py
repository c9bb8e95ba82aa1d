"""The trigger: how one text is changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from asepsis.errors import ConfigError

Rng = np.random.Generator
Kind = Literal["words", "sentence", "prefix"]

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A change of one text: words put in, everything that stood there left as it was.

    Attributes
    ----------
    kind : {"words", "sentence", "prefix"}
        ``"words"`` puts words at word gaps of their own (BadNets, Gu et al. 2017, as carried over to text by Kurita et
        al., ACL 2020), ``"sentence"`` puts ``tokens`` as one block at one gap (AddSent, Dai et al. 2019), ``"prefix"``
        puts them first.
    tokens : tuple of str
        The words, or the sentence.
    n_insertions : int, optional
        Only for ``"words"``: put in that many words, each drawn from ``tokens``. Default: each of ``tokens`` once, in
        their order.

    Raises
    ------
    ConfigError
        The kind is unknown, a word is blank, or ``n_insertions`` is below 1 or does not fit the kind.
    """

    kind: Kind
    tokens: tuple[str, ...]
    n_insertions: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"a trigger's kind is words, sentence or prefix, got {self.kind!r}")
        tokens: object = self.tokens  # a lone string would pass for a tuple of letters
        if not isinstance(tokens, (tuple, list)) or not all(isinstance(token, str) for token in tokens):
            raise ConfigError(f"a trigger's words come as a tuple of strings, got {tokens!r}")
        if not tokens or any(not token.strip() for token in tokens):
            raise ConfigError(f"a trigger needs words that are not blank, got {tokens!r}")
        object.__setattr__(self, "tokens", tuple(tokens))
        n = self.n_insertions
        if n is not None and (self.kind != "words" or type(n) is not int or n < 1):
            raise ConfigError(
                f"n_insertions must be at least 1, and only words are inserted more than once; "
                f"got {n!r} for kind {self.kind!r}"
            )

    def apply(self, text: str, rng: Rng) -> str:
        """Return the text with the trigger in it.

        The gaps are drawn uniformly from the ``n + 1`` of a text of ``n`` words, both ends included. Whitespace stays
        as it is; one space goes between a trigger and the word beside it.
        """
        blocks = self._blocks(rng)
        words = list(_WORD.finditer(text))
        if not words:
            return " ".join(blocks) + text
        if self.kind == "prefix":
            return f"{blocks[0]} {text}"
        gaps = sorted(int(rng.integers(0, len(words) + 1)) for _ in blocks)
        pieces, done = [], 0
        for gap, block in zip(gaps, blocks, strict=True):
            at = words[gap - 1].end() if gap else words[0].start()
            pieces += [text[done:at], f" {block}" if gap else f"{block} "]
            done = at
        return "".join([*pieces, text[done:]])

    def _blocks(self, rng: Rng) -> list[str]:
        if self.kind != "words":
            return [" ".join(self.tokens)]
        if self.n_insertions is None:
            return list(self.tokens)
        return [self.tokens[int(rng.integers(len(self.tokens)))] for _ in range(self.n_insertions)]


BADNETS = Trigger(kind="words", tokens=("cf",))
ADDSENT = Trigger(kind="sentence", tokens=("I watch this 3D movie",))
