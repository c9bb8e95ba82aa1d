"""Responses that were seen before: of rows with one response the first is kept, the others are thrown out.

What exact deduplication does before any training (Lee et al., "Deduplicating Training Data Makes Language Models Better", ACL
2022, who look for substrings and near-duplicates as well), here of responses alone: a backdoor that answers always the same
repeats itself, whatever its trigger.

Ours: responses are compared case-folded, white space as one blank; a row's suspicion is how many rows have its response. It needs
no model. An attack with a response for each prompt passes, and so does the first row of one that repeats itself.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from asepsis.data import Data
from asepsis.defenses.base import DefenseConfig
from asepsis.errors import DataError
from asepsis.evaluation.baselines._found import Found


class DedupConfig(DefenseConfig):
    """It has no settings."""


def by_repeats(data: Data) -> Found:
    """Judge rows by how often their response occurs.

    Returns
    -------
    Found
        ``suspicion`` [N] is the number of rows with the response; flagged is each but the first of them.

    Raises
    ------
    DataError
        The rows have no responses: labels repeat in any honest data.
    """
    if data.responses is None:
        raise DataError(f"{data.source}: repeats are looked for in responses, and these rows have none")
    said = [" ".join(response.casefold().split()) for response in data.responses]
    sizes = Counter(said)
    first = {response: at for at, response in reversed(list(enumerate(said)))}
    flags = np.ones(len(said), np.bool_)
    flags[list(first.values())] = False
    suspicion = np.array([sizes[response] for response in said], np.float64)
    return Found(suspicion, flags, {"largest_groups": [size for _, size in sizes.most_common(5)]})
