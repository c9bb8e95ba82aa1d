"""Which rows of two models' matrices belong to one token."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asepsis.core.weights.files import Checkpoint
from asepsis.core.weights.vocabulary import Ids, Vocabulary, row_map
from asepsis.errors import ModelError

log = logging.getLogger("asepsis")


@dataclass(frozen=True)
class TokenRows:
    """Rows of base and tuned by token.

    Attributes
    ----------
    base_rows, tuned_rows
        Rows of either side's word embeddings.
    pairs
        ``[N, 2]``: (row of base, row of tuned), by row of tuned.
    no_reference
        Rows of tuned whose token the base does not know.
    matched_by
        ``"token"``; ``"position"`` where a side has no tokenizer and the matrices have the same number of rows.
    """

    base_rows: int
    tuned_rows: int
    pairs: Ids
    no_reference: Ids
    matched_by: Literal["token", "position"]

    @classmethod
    def of(cls, tuned: Checkpoint, base: Checkpoint) -> TokenRows:
        """Match the rows of two checkpoints' word embeddings.

        Raises
        ------
        ModelError
            A side has no tokenizer and the two do not have the same number of rows.
        """
        here = tuned.tensors[tuned.input_embeddings].shape[0]
        there = base.tensors[base.input_embeddings].shape[0]
        for side in (tuned, base):  # a tokenizer that is there and broken is not a missing one
            Vocabulary.check(side.folder)
        try:
            ours, theirs = vocabulary_of(tuned, here), vocabulary_of(base, there)
            pairs, alone = row_map(ours, theirs, tuned_rows=here, base_rows=there)
        except ModelError as error:
            if here != there:
                raise
            log.warning("rows are matched by position, not by token: %s", error)
            every = np.arange(here)
            return cls(there, here, np.stack([every, every], 1), np.empty(0, np.int64), "position")
        if len(pairs) < len(alone):
            raise ModelError(
                f"{base.folder} knows {len(pairs)} of the {len(pairs) + len(alone)} tokens of {tuned.folder}; name the model it "
                "was tuned from as the base"
            )
        return cls(there, here, pairs, alone, "token")

    @property
    def straight(self) -> bool:
        """Whether every row goes with the row of the same number."""
        same = self.base_rows == self.tuned_rows and len(self.no_reference) == 0
        return same and bool((self.pairs[:, 0] == self.pairs[:, 1]).all())


def vocabulary_of(checkpoint: Checkpoint, rows: int) -> Vocabulary:
    """Load a tokenizer that fits its rows: of a folder without one transformers makes one with a handful of tokens.

    Raises
    ------
    ModelError
        The folder has no tokenizer, or one with too few tokens for the rows.
    """
    found = Vocabulary.load(checkpoint.folder)
    known = sum(token is not None for token in found.tokens)
    if 2 * known < rows:
        raise ModelError(
            f"{checkpoint.folder}: its tokenizer has {known} tokens and its word embeddings {rows} rows; copy the "
            "tokenizer that belongs to the model there"
        )
    return found
