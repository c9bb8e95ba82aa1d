"""How long texts are to a tokenizer, nothing cut off: what is longer than a detector reads is seen in part only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1024


def token_counts(tokenizer: Any, texts: Sequence[str], *, prompts: bool = False) -> NDArray[np.int64]:
    """Return the tokens of each whole text, int64 [N]; of prompts without the end token that some tokenizers put last."""
    counts = np.zeros(len(texts), np.int64)
    for start in range(0, len(texts), _AT_ONCE):
        # not verbose: that a text is longer than the model reads is what is asked here
        rows = tokenizer(list(texts[start : start + _AT_ONCE]), verbose=False).input_ids
        for at, ids in enumerate(rows, start):
            ended = prompts and len(ids) > 0 and ids[-1] == tokenizer.eos_token_id
            counts[at] = len(ids) - ended
    return counts
